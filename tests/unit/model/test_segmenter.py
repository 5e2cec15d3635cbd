"""The whole network: sizes, precision, heads that differ in the classifier alone, and refused settings."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.config import BackboneConfig, HeadConfig, ModelConfig
from pipeline.errors import ConfigError
from pipeline.model.losses import segmentation_losses
from pipeline.model.segmenter import build_segmenter, channels_last, outline_segmenter
from tests.segmenters import (
    CCS,
    CLASSES,
    DEEPLAB,
    IGNORE,
    OCR,
    PLAIN,
    counts,
    every_head,
    make_batch,
    make_model,
    one_of_a_kind,
    tensors,
)

ROOT = Path(__file__).resolve().parents[3]


@one_of_a_kind
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(32, 64), (45, 67), (1, 1)])
def test_what_comes_out_has_the_promised_size(head, output_stride, size):
    model = make_model(head, output_stride=output_stride).eval()
    with torch.no_grad():
        output = model(torch.zeros(2, 3, *size, dtype=torch.uint8))
    coarse_size = model.feature_size(*size)
    size = tuple(-(-side // 4) for side in size) if head is DEEPLAB else coarse_size
    assert output.coarse_BKhw.shape == (2, CLASSES, *coarse_size)
    assert output.logits_BKhw.shape == (2, CLASSES, *size)
    assert output.features_BDhw.shape == (2, 16, *size)
    if head.kind == "ccs":
        assert output.centers_BKD.shape == output.scene.center_BKD.shape == (2, CLASSES, 16)
        assert output.global_KD.shape == (CLASSES, 16)
        assert output.scene.mass_BK.shape == output.scene.reliability_BK.shape == (2, CLASSES)
    else:
        assert output.centers_BKD is output.global_KD is output.scene is None
    assert all(t.isfinite().all() for t in tensors(output))


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


@every_head
@pytest.mark.parametrize("batch", [1, 3])
def test_every_parameter_gets_a_gradient(head, batch):
    model = make_model(head).train()
    image, label = make_batch(batch)
    segmentation_losses(model(image), label, counts(model, label, head), head).total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert None not in gradients.values()  # DDP would wait for it
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    if head.fusion == "replace":  # it has no global centers while every class has some mass
        assert not gradients.pop("head.similarity.centers.global_center_KD").any()
    assert not [name for name, gradient in gradients.items() if not gradient.any()]


@every_head
def test_gradients_of_parts_under_global_counts_are_those_of_the_whole_batch(head):
    model = make_model(head).double().eval()  # fixed BatchNorm statistics: parts of a batch do not meet
    image, label = make_batch(4)
    label[2] = IGNORE
    label[3, 8:] = IGNORE
    label[label == 5] = 0
    label[0, 16:32, 16:32] = 5
    denominators = counts(model, label, head)

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


@every_head
@pytest.mark.parametrize("intra_form", ["cosine", "l1", "cross-entropy"])
def test_one_picture_has_the_gradients_of_itself_twice_in_either_layout(head, intra_form):
    head = dataclasses.replace(head, intra_form=intra_form)
    image, label = (x[:1] for x in make_batch())

    def gradients(batch: int, last: bool) -> list[torch.Tensor]:
        model, pictures = make_model(head).double().train(), image.repeat(batch, 1, 1, 1)
        if last:
            channels_last(model)
            pictures = pictures.to(memory_format=torch.channels_last)
        labels = label.repeat(batch, 1, 1)
        segmentation_losses(model(pictures), labels, counts(model, labels, head), head).total.backward()
        return [p.grad for p in model.parameters()]

    expected = gradients(2, last=False)
    for last in (False, True):
        for found, wanted in zip(gradients(1, last), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@one_of_a_kind
def test_a_batch_without_labels_has_zero_loss_and_zero_gradients(head):
    model = make_model(head).train()
    image, label = make_batch()
    label[:] = IGNORE
    terms = segmentation_losses(model(image), label, counts(model, label), head)
    terms.total.backward()
    assert not any(t.item() for t in terms)
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


def test_the_mask_is_that_of_each_images_own_labels_at_the_middles_of_feature_pixels():
    head = HeadConfig(dim=16, dropout=0.0, mask_ignored=True)
    model = make_model(head).double().train()
    image, label = make_batch()
    label[0, :, :21] = IGNORE
    label[1, 14:30, 40:] = IGNORE
    output = model(image, label)
    size = output.coarse_BKhw.shape[2:]
    small = nn.functional.interpolate(label[:, None].float(), size, mode="nearest-exact")[:, 0]
    counted = (small != IGNORE).sum((1, 2))
    assert 0 < counted.min() < counted.max() < small[0].numel()
    torch.testing.assert_close(output.scene.mass_BK.sum(1), counted.double())
    share_BKN = (output.coarse_BKhw.softmax(1) * (small != IGNORE)[:, None]).flatten(2)
    summed_BKD = share_BKN @ output.features_BDhw.flatten(2).transpose(1, 2)
    torch.testing.assert_close(output.scene.center_BKD, summed_BKD / share_BKN.sum(2, keepdim=True))


@pytest.mark.parametrize("name", [name for name, head in CCS.items() if head.fusion != "off"])
def test_the_prediction_teaches_the_coarse_classifier_by_way_of_the_scene_centers(name):
    model = make_model(CCS[name]).train()
    alpha = model.head.similarity.centers.learned_alpha
    if alpha is not None:
        nn.init.ones_(alpha)  # from 0 on it lets nothing through
    model(make_batch()[0]).logits_BKhw.square().mean().backward()
    gradient = model.head.reduction.coarse.weight.grad
    if name == "hard":  # a choice has no slope
        assert gradient is None
    else:
        assert gradient.any()


@one_of_a_kind
def test_the_network_runs_in_float64_throughout(head):
    model = make_model(head).double().eval()
    image, _ = make_batch()
    single = make_model(head).eval()(image)
    for found, expected in zip(tensors(model(image)), tensors(single), strict=True):
        assert found.dtype == torch.float64
        assert expected.dtype == torch.float32
        torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-3)


@one_of_a_kind
def test_channels_last_gives_the_same_predictions(head):
    model = make_model(head).double().eval()
    image, _ = make_batch()
    expected = model(image).logits_BKhw
    channels_last(model)
    kernels = [p for p in model.parameters() if p.ndim == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)
    found = model(image.to(memory_format=torch.channels_last)).logits_BKhw
    torch.testing.assert_close(found, expected)


@one_of_a_kind
def test_heads_share_all_but_what_comes_after_the_coarse_prediction(head):
    own = make_model(head).state_dict()
    plain = make_model(PLAIN).state_dict()
    classifier = {"head.classifier.weight", "head.classifier.bias"}
    assert plain.keys() - own.keys() <= classifier
    shared = plain.keys() - classifier
    assert all(name.startswith(("backbone.", "head.reduction.", "mean_3", "std_3")) for name in shared)
    assert all(torch.equal(own[name], plain[name]) for name in shared)


@one_of_a_kind
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
    image, _ = make_batch()
    first, second = ccs(image), ccs(image)
    assert torch.equal(first.features_BDhw, second.features_BDhw)
    assert not torch.equal(first.coarse_BKhw, second.coarse_BKhw)
    for head in (PLAIN, OCR, DEEPLAB):
        other = make_model(dataclasses.replace(head, dropout=0.5)).train()
        assert not torch.equal(other(image).logits_BKhw, other(image).logits_BKhw)
        assert torch.equal(other.eval()(image).logits_BKhw, other(image).logits_BKhw)


def test_without_a_projection_the_reduced_features_themselves_are_compared():
    with_one, without = make_model().eval(), make_model(CCS["no-projection"]).eval()
    assert with_one(make_batch()[0]).features_BDhw.min() < 0
    assert without(make_batch()[0]).features_BDhw.min() == 0
    extra = with_one.state_dict().keys() - without.state_dict().keys()
    assert {name.split(".")[1] for name in extra if "log_tau" not in name} == {"projection"}


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


@every_head
@pytest.mark.parametrize(("depth", "stem", "output_stride"), [(10, "v1", 8), (18, "v1c", 16), (50, "v1", 32)])
def test_an_outline_has_the_tensors_of_the_network_that_is_built(head, depth, stem, output_stride):
    config = ModelConfig(BackboneConfig(depth, 8, stem, output_stride), head)
    outline, built = (
        outline_segmenter(config, CLASSES).state_dict(),
        build_segmenter(config, CLASSES).state_dict(),
    )
    assert [(name, t.shape, t.dtype) for name, t in outline.items()] == [
        (name, t.shape, t.dtype) for name, t in built.items()
    ]


OUTLINES = """
import sys
from resource import RUSAGE_SELF, getrusage
from pipeline.config import BackboneConfig, HeadConfig, ModelConfig
from pipeline.model.segmenter import outline_segmenter
before = getrusage(RUSAGE_SELF).ru_maxrss
for kind in ("ccs", "plain", "ocr", "deeplabv3plus"):
    outline = outline_segmenter(ModelConfig(BackboneConfig(depth=101), HeadConfig(kind=kind)), 19)
numbers = sum(tensor.numel() for tensor in outline.state_dict().values())
print("torch._dynamo" in sys.modules, numbers * 4 // 1024, getrusage(RUSAGE_SELF).ru_maxrss - before)
"""


def test_an_outline_takes_neither_the_memory_of_its_numbers_nor_a_compiler():
    ended = subprocess.run(
        [sys.executable, "-c", OUTLINES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    has_compiler, numbers_kib, grown_kib = ended.stdout.split()
    assert has_compiler == "False"
    assert int(grown_kib) < int(numbers_kib) / 4
