"""The whole network: sizes, precision, heads that differ in the classifier alone, and refused settings."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from torch import nn

from pipeline.config import BackboneConfig, HeadConfig, ModelConfig
from pipeline.errors import ConfigError
from pipeline.model.losses import Denominators, count_labels, segmentation_losses
from pipeline.model.segmenter import Segmenter, build_segmenter

CLASSES = 6
IGNORE = 255
HEADS = [
    *(
        HeadConfig(dim=16, dropout=0.0, fusion=fusion, similarity=similarity, learn_tau=True)
        for fusion, similarity in itertools.product(("residual-mlp", "gate", "off"), ("cosine", "dot"))
    ),
    HeadConfig(kind="plain", dim=16, dropout=0.0),
]


def make_model(head: HeadConfig = HEADS[0], seed: int = 0, output_stride: int = 8) -> Segmenter:
    torch.manual_seed(seed)
    backbone = BackboneConfig(depth=18, base_width=8, output_stride=output_stride)
    model = build_segmenter(ModelConfig(backbone, head), CLASSES)
    if head.fusion == "residual-mlp" and head.kind == "ccs":
        nn.init.normal_(model.head.similarity.centers.mlp[2].weight, std=0.1)
    return model


def make_batch(batch: int = 2, height: int = 40, width: int = 56) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
    label = torch.randint(
        0, CLASSES, (batch, height // 8, width // 8), dtype=torch.uint8, generator=generator
    )
    label = label.repeat_interleave(8, 1).repeat_interleave(8, 2)
    label[:, :4] = IGNORE
    return image, label


def counts(model: Segmenter, label: torch.Tensor) -> Denominators:
    return count_labels(label, *model.feature_size(*label.shape[1:]), CLASSES, n_min=1)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(32, 64), (45, 67), (1, 1)])
def test_logits_have_the_promised_feature_size(output_stride, size):
    model = make_model(output_stride=output_stride).eval()
    with torch.no_grad():
        output = model(torch.zeros(1, 3, *size, dtype=torch.uint8))
    height, width = model.feature_size(*size)
    assert output.logits_BKhw.shape == output.coarse_BKhw.shape == (1, CLASSES, height, width)
    assert output.features_BDhw.shape == (1, 16, height, width)
    assert output.centers_BKD.shape == (1, CLASSES, 16)
    assert all(t.isfinite().all() for t in output)


def test_pictures_are_normalised_by_imagenets_mean_and_deviation_inside_the_model():
    model = make_model().eval()
    image, _ = make_batch()
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        from_bytes, from_floats = model(image), model(image.float())
    torch.testing.assert_close(seen[0], (image / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    assert torch.equal(from_bytes.logits_BKhw, from_floats.logits_BKhw)
    assert {"mean_3", "std_3"} <= model.state_dict().keys()


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_gets_a_gradient(head):
    model = make_model(head).train()
    image, label = make_batch()
    segmentation_losses(model(image), label, counts(model, label), head).total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("head", HEADS)
def test_gradients_of_parts_under_global_counts_are_those_of_the_whole_batch(head):
    model = make_model(head).double().eval()  # fixed BatchNorm statistics: parts of a batch do not meet
    image, label = make_batch(4)
    label[2] = IGNORE
    label[3, 8:] = IGNORE
    label[label == 5] = 0
    label[0, 16:32, 16:32] = 5
    denominators = counts(model, label)

    def gradients(parts: list[slice]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for part in parts:
            terms = segmentation_losses(model(image[part]), label[part], denominators, head)
            terms.total.backward()
            total += terms.total.detach()
        return total, [p.grad.clone() for p in model.parameters()]

    whole, whole_gradients = gradients([slice(0, 4)])
    for parts in ([slice(0, 3), slice(3, 4)], [slice(i, i + 1) for i in range(4)]):
        total, found = gradients(parts)
        torch.testing.assert_close(total, whole, rtol=1e-12, atol=0)
        for gradient, expected in zip(found, whole_gradients, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)


def test_a_batch_without_labels_has_zero_loss_and_zero_gradients():
    model = make_model().train()
    image, label = make_batch()
    label[:] = IGNORE
    terms = segmentation_losses(model(image), label, counts(model, label), HEADS[0])
    terms.total.backward()
    assert [t.item() for t in terms] == [0.0] * 5
    assert not any(p.grad.any() for p in model.parameters())


def test_masked_training_does_not_let_ignored_pixels_into_the_scene_centers():
    head = HeadConfig(dim=16, dropout=0.0, mask_ignored=True)
    model = make_model(head).train()
    image, label = make_batch()
    everything = torch.full_like(label, IGNORE)
    global_center = model.head.similarity.centers.global_center_KD
    assert torch.equal(model(image, everything).centers_BKD, global_center.expand(2, -1, -1))
    assert not torch.allclose(model(image, label).centers_BKD[0], global_center)
    with pytest.raises(AssertionError, match="labels"):
        model(image)
    assert not torch.allclose(model.eval()(image, everything).centers_BKD[0], global_center)


@pytest.mark.parametrize("head", [HEADS[0], HEADS[-1]])
def test_bfloat16_autocast_is_finite_and_near_float32(head):
    model = make_model(head).train()
    image, label = make_batch(4, 64, 96)
    expected = model(image)
    expected_loss = segmentation_losses(expected, label, counts(model, label), head)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(image)
        loss = segmentation_losses(found, label, counts(model, label), head)
    assert all(t is None or t.dtype == torch.float32 for t in found)
    assert loss.total.item() == pytest.approx(expected_loss.total.item(), rel=0.02)
    difference = (found.logits_BKhw - expected.logits_BKhw).square().mean().sqrt()
    assert difference < 0.1 * expected.logits_BKhw.std()
    loss.total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_network_runs_in_float64_throughout():
    model = make_model().double().eval()
    image, _ = make_batch()
    single = make_model().eval()(image)
    for found, expected in zip(model(image), single, strict=True):
        assert found.dtype == torch.float64
        torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-3)


def test_channels_last_gives_the_same_predictions():
    model = make_model().double().eval()
    image, _ = make_batch()
    expected = model(image).logits_BKhw
    found = model.to(memory_format=torch.channels_last)(
        image.to(memory_format=torch.channels_last)
    ).logits_BKhw
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("head", [HEADS[0], HEADS[-1]])
def test_a_step_traces_as_one_graph_and_so_reads_no_value_back_to_the_host(head):
    model = make_model(head).train()
    image, label = make_batch()

    def step(image, label):
        return segmentation_losses(model(image, label), label, counts(model, label), head)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's own
        traced = torch.compile(step, backend="eager", fullgraph=True)(image, label)
    assert traced.total.item() == pytest.approx(step(image, label).total.item(), rel=1e-5)


def test_plain_is_the_same_network_but_for_the_classifier():
    ccs, plain = make_model(HEADS[0]).state_dict(), make_model(HEADS[-1]).state_dict()
    shared = {name for name in ccs if name.startswith(("backbone.", "head.reduction.", "mean_3", "std_3"))}
    assert shared <= plain.keys()
    assert plain.keys() - shared == {"head.classifier.weight", "head.classifier.bias"}
    assert all(torch.equal(ccs[name], plain[name]) for name in shared)


@pytest.mark.parametrize("head", [HEADS[0], HEADS[-1]])
def test_the_coarse_prediction_is_a_linear_map_of_the_reduced_features(head):
    model = make_model(head).eval()
    reduced = []
    model.head.reduction.relu.register_forward_hook(lambda *call: reduced.append(call[2].clone()))
    output = model(make_batch()[0])
    weight, bias = model.head.reduction.coarse.weight, model.head.reduction.coarse.bias
    torch.testing.assert_close(output.coarse_BKhw, nn.functional.conv2d(reduced[0], weight, bias))
    assert reduced[0].min() == 0.0


def test_dropout_reaches_the_linear_classifiers_and_not_what_is_compared_with_centers():
    ccs = make_model(HeadConfig(dim=16, dropout=0.5)).train()
    plain = make_model(HeadConfig(kind="plain", dim=16, dropout=0.5)).train()
    image, _ = make_batch()
    first, second = ccs(image), ccs(image)
    assert torch.equal(first.features_BDhw, second.features_BDhw)
    assert not torch.equal(first.coarse_BKhw, second.coarse_BKhw)
    assert not torch.equal(plain(image).logits_BKhw, plain(image).logits_BKhw)


def test_parameters_are_divided_between_backbone_and_head():
    model = make_model()
    backbone, head = list(model.backbone_parameters()), list(model.head_parameters())
    assert len(backbone) + len(head) == len(list(model.parameters()))
    assert {id(p) for p in backbone}.isdisjoint(id(p) for p in head)


def test_equal_seeds_build_equal_networks():
    first, second = make_model(seed=5).state_dict(), make_model(seed=5).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_delta_that_no_centers_reach_is_refused():
    with pytest.raises(ConfigError, match=r"model\.head\.delta -0\.3 .*-1/5 = -0\.2000"):
        make_model(HeadConfig(dim=16, delta=-0.3))
    make_model(HeadConfig(dim=16, delta=-0.2))


def test_fewer_than_two_classes_are_refused():
    with pytest.raises(ConfigError, match="at least 2 classes, got 1"):
        build_segmenter(ModelConfig(), 1)
