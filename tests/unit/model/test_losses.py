"""The losses against loops, at their extremes, and as sums over the parts of a batch."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import HeadConfig
from pipeline.model.heads import SegmenterOutput
from pipeline.model.losses import (
    Denominators,
    count_labels,
    cross_entropy_sum,
    inter_class_sum,
    intra_class_sum,
    segmentation_losses,
)
from pipeline.model.pixel_labels import Presence, nearest_labels, presence

CLASSES, DIM, HEIGHT, WIDTH = 4, 8, 3, 5
LABEL_HEIGHT, LABEL_WIDTH = 11, 18
SETTINGS = HeadConfig(dim=DIM, delta=-0.1, detach_center=False)
IGNORE = 255


def make_output(batch: int, seed: int = 0) -> SegmenterOutput:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    return SegmenterOutput(
        leaf(batch, CLASSES, HEIGHT, WIDTH),
        leaf(batch, CLASSES, HEIGHT, WIDTH),
        leaf(batch, DIM, HEIGHT, WIDTH),
        leaf(batch, CLASSES, DIM),
    )


def make_label(batch: int, seed: int = 0) -> torch.Tensor:
    """Blobs of classes with a fifth of the pixels ignored."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, CLASSES, (batch, 4, 6))
    label = coarse.repeat(3, axis=1).repeat(3, axis=2)[:, :LABEL_HEIGHT, :LABEL_WIDTH]
    label = np.where(generator.random(label.shape) < 0.2, IGNORE, label)
    return torch.from_numpy(label.astype(np.uint8))


def counts(label: torch.Tensor, n_min: int = 1) -> Denominators:
    return count_labels(label, HEIGHT, WIDTH, CLASSES, n_min)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / math.sqrt(a @ a + 1e-6) / math.sqrt(b @ b + 1e-6))


def numpy_nearest(label: np.ndarray) -> np.ndarray:
    """The label whose square holds the middle of the feature pixel, found in real numbers."""
    rows = [math.floor((i + 0.5) * LABEL_HEIGHT / HEIGHT) for i in range(HEIGHT)]
    columns = [math.floor((j + 0.5) * LABEL_WIDTH / WIDTH) for j in range(WIDTH)]
    return label[:, rows][:, :, columns]


def numpy_inter(center: np.ndarray, label: np.ndarray, config: HeadConfig) -> float:
    per_image = []
    for b, small in enumerate(numpy_nearest(label)):
        present = [k for k in range(CLASSES) if (small == k).sum() >= config.n_min]
        pairs = [
            max(cosine(center[b, i], center[b, j]) - config.delta, 0.0) ** config.p
            for i in present for j in present if i != j
        ]  # fmt: skip
        if pairs:
            per_image.append(sum(pairs) / len(pairs))
    return sum(per_image) / len(per_image) if per_image else 0.0


def numpy_intra(feature: np.ndarray, center: np.ndarray, label: np.ndarray, config: HeadConfig) -> float:
    per_class = []
    for b, small in enumerate(numpy_nearest(label)):
        for k in range(CLASSES):
            mine = feature[b][:, small == k].T
            if len(mine) >= config.n_min:
                per_class.append(np.mean([(1 - cosine(x, center[b, k])) ** config.q for x in mine]))
    return float(np.mean(per_class)) if per_class else 0.0


def numpy_cross_entropy(logits_BKHW: np.ndarray, label: np.ndarray) -> float:
    losses = []
    for b, i, j in zip(*np.nonzero(label != IGNORE), strict=True):
        z = logits_BKHW[b, :, i, j]
        losses.append(math.log(np.exp(z).sum()) - z[label[b, i, j]])
    return float(np.mean(losses)) if losses else 0.0


def numpy_bilinear(x_BKhw: np.ndarray) -> np.ndarray:
    """Bilinear enlargement with half-pixel centers, as a matrix for each axis."""

    def matrix(size: int, target: int) -> np.ndarray:
        weights = np.zeros((target, size))
        for t in range(target):
            place = max((t + 0.5) * size / target - 0.5, 0.0)
            low = min(int(place), size - 1)
            high = min(low + 1, size - 1)
            weights[t, low] += 1 - (place - low)
            weights[t, high] += place - low
        return weights

    return matrix(HEIGHT, LABEL_HEIGHT) @ x_BKhw @ matrix(WIDTH, LABEL_WIDTH).T


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("p", "q", "n_min"), [(2, 2, 1), (1, 1, 3)])
def test_every_term_equals_its_equation_written_as_loops(seed, p, q, n_min):
    config = dataclasses.replace(SETTINGS, p=p, q=q, n_min=n_min)
    output, label = make_output(3, seed), make_label(3, seed)
    label[2] = IGNORE
    terms = segmentation_losses(output, label, counts(label, n_min), config)
    logits, coarse, feature, center = (t.detach().numpy() for t in output)
    y = label.numpy()
    expected_ce = numpy_cross_entropy(numpy_bilinear(logits), y)
    expected_coarse = numpy_cross_entropy(numpy_bilinear(coarse), y)
    expected_inter = numpy_inter(center, y, config)
    expected_intra = numpy_intra(feature, center, y, config)
    assert terms.ce.item() == pytest.approx(expected_ce, rel=1e-10)
    assert terms.coarse.item() == pytest.approx(expected_coarse, rel=1e-10)
    assert terms.inter.item() == pytest.approx(expected_inter, rel=1e-10)
    assert terms.intra.item() == pytest.approx(expected_intra, rel=1e-10)
    total = expected_ce + 0.4 * expected_coarse + 0.1 * expected_inter + 0.1 * expected_intra
    assert terms.total.item() == pytest.approx(total, rel=1e-10)


def split_gradients(label: torch.Tensor, parts: list[slice], config: HeadConfig) -> tuple[list, list]:
    """Summed terms and gradients when each part is computed alone under the whole batch's counts."""
    output = make_output(len(label))
    denominators = Denominators(
        *(sum(column) for column in zip(*(counts(label[part]) for part in parts), strict=True))
    )
    terms = [0.0] * 5
    for part in parts:
        piece = SegmenterOutput(*(None if t is None else t[part] for t in output))
        found = segmentation_losses(piece, label[part], denominators, config)
        found.total.backward()
        terms = [a + b.item() for a, b in zip(terms, found, strict=True)]
    return terms, [t.grad for t in output]


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize(
    "parts",
    [
        [slice(0, 2), slice(2, 4), slice(4, 6)],
        [slice(0, 1), slice(1, 6)],
        [slice(i, i + 1) for i in range(6)],
    ],
)
def test_parts_under_global_counts_add_up_to_the_whole_batch(parts, detach):
    label = make_label(6)
    label[4:] = IGNORE  # a part without any label
    label[1, :9] = IGNORE  # very unequal counts
    label[label == 3] = 0
    label[2, 3:8, 5:15] = 3  # a class that only one part has
    config = dataclasses.replace(SETTINGS, detach_center=detach)
    whole_terms, whole_gradients = split_gradients(label, [slice(0, 6)], config)
    terms, gradients = split_gradients(label, parts, config)
    assert whole_terms[3] > 0
    assert terms == pytest.approx(whole_terms, rel=1e-12)
    for gradient, whole in zip(gradients, whole_gradients, strict=True):
        torch.testing.assert_close(gradient, whole, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("batch", [0, 2])
def test_without_labels_every_term_and_gradient_is_exactly_zero_and_connected(batch):
    output = make_output(batch)
    label = torch.full((batch, LABEL_HEIGHT, LABEL_WIDTH), IGNORE, dtype=torch.uint8)
    terms = segmentation_losses(output, label, counts(label), SETTINGS)
    assert [t.item() for t in terms] == [0.0] * 5
    assert all(t.requires_grad for t in terms)
    terms.total.backward()
    assert all(t.grad is not None and not t.grad.any() for t in output)


def test_one_image_without_labels_leaves_the_others_loss_alone():
    output, label = make_output(2), make_label(2)
    label[1] = IGNORE
    both = segmentation_losses(output, label, counts(label), SETTINGS)
    first = SegmenterOutput(*(t[:1] for t in output))
    alone = segmentation_losses(first, label[:1], counts(label[:1]), SETTINGS)
    assert [t.item() for t in both] == pytest.approx([t.item() for t in alone], rel=1e-12)


def test_permuting_classes_leaves_the_losses():
    output, label, order = make_output(2), make_label(2), torch.tensor([2, 0, 3, 1])
    renamed = torch.full((256,), IGNORE, dtype=torch.uint8)
    renamed[order] = torch.arange(CLASSES, dtype=torch.uint8)
    permuted = SegmenterOutput(
        output.logits_BKhw[:, order], output.coarse_BKhw[:, order], output.features_BDhw,
        output.centers_BKD[:, order],
    )  # fmt: skip
    expected = segmentation_losses(output, label, counts(label), SETTINGS)
    found = segmentation_losses(permuted, renamed[label.long()], counts(label), SETTINGS)
    assert [t.item() for t in found] == pytest.approx([t.item() for t in expected], rel=1e-12)


def everyone_present(batch: int = 1, classes: int = CLASSES) -> Presence:
    """`classes` pixels, one of each class."""
    label = torch.arange(classes, dtype=torch.uint8).expand(batch, 1, classes)
    return presence(label, 1, classes, classes, n_min=1)


def test_inter_is_zero_for_orthonormal_centers_and_one_for_identical_ones():
    orthonormal = torch.eye(CLASSES, DIM, dtype=torch.float64)[None]
    identical = torch.ones(1, CLASSES, DIM, dtype=torch.float64)
    assert inter_class_sum(orthonormal, everyone_present(), 0.0, 2).item() == 0.0
    assert inter_class_sum(identical, everyone_present(), 0.0, 2).item() == pytest.approx(1.0, abs=1e-6)


def test_inter_is_zero_with_fewer_than_two_classes():
    identical = torch.ones(2, CLASSES, DIM, dtype=torch.float64, requires_grad=True)
    label = torch.full((2, 3, 3), IGNORE, dtype=torch.uint8)
    label[0] = 1
    where = presence(label, 3, 3, CLASSES, n_min=1)
    loss = inter_class_sum(identical, where, 0.0, 2)
    loss.backward()
    assert loss.item() == 0.0
    assert not identical.grad.any()
    assert count_labels(label, 3, 3, CLASSES, 1).inter_images.item() == 0


@given(st.integers(0, 1000), st.integers(2, 7))
@settings(max_examples=25, deadline=None)
def test_mean_cosine_of_centers_never_falls_below_the_simplex(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(1, classes, DIM, dtype=torch.float64, generator=generator)
    # With the hinge at -1 and p 1 the loss is the mean cosine plus one.
    mean_cosine = inter_class_sum(center, everyone_present(1, classes), -1.0, 1).item() - 1.0
    assert mean_cosine >= -1 / (classes - 1) - 1e-9


def test_intra_is_zero_exactly_where_pixels_point_at_their_center():
    center = torch.randn(1, CLASSES, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64)
    aligned = (lengths[:, None] * center[0]).T[None, :, None, :]
    where = everyone_present()
    assert intra_class_sum(aligned, center, where, 1).item() == pytest.approx(0.0, abs=1e-5)
    turned = aligned.clone()
    turned[..., 2] *= -1
    assert intra_class_sum(turned, center, where, 1).item() == pytest.approx(2.0, abs=1e-5)


def test_intra_leaves_out_pixels_that_are_ignored():
    output, label = make_output(1), make_label(1)
    where = presence(label, HEIGHT, WIDTH, CLASSES, 1)
    intra_class_sum(output.features_BDhw, output.centers_BKD, where, 2).backward()
    ignored = nearest_labels(label, HEIGHT, WIDTH)[0] == IGNORE
    moved = output.features_BDhw.grad[0].abs().sum(0) > 0
    assert ignored.any()
    assert torch.equal(moved, ~ignored)


def test_detached_centers_are_moved_by_the_inter_class_distance_alone():
    label = make_label(1)
    config = dataclasses.replace(SETTINGS, detach_center=True, lambda_inter=0.0)
    output = make_output(1)
    segmentation_losses(output, label, counts(label), config).total.backward()
    assert not output.centers_BKD.grad.any()
    assert output.features_BDhw.grad.any()


@given(st.integers(0, 10_000), st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_counts_are_those_of_the_labels_the_losses_see(seed, n_min):
    label = make_label(2, seed)
    found = counts(label, n_min)
    small = numpy_nearest(label.numpy())
    present = [[int((image == k).sum()) >= n_min for k in range(CLASSES)] for image in small]
    assert found.valid_pixels.item() == int((label != IGNORE).sum())
    assert found.intra_classes.item() == sum(map(sum, present))
    assert found.inter_images.item() == sum(sum(row) >= 2 for row in present)
    assert all(t.dtype == torch.float64 and t.ndim == 0 for t in found)


def test_gradients_equal_finite_differences():
    label = make_label(2)
    output = make_output(2)

    def terms(*tensors):
        return tuple(segmentation_losses(SegmenterOutput(*tensors), label, counts(label), SETTINGS))

    assert torch.autograd.gradcheck(terms, tuple(output), fast_mode=True)


def test_a_plain_head_has_no_center_losses():
    output, label = make_output(2)._replace(centers_BKD=None), make_label(2)
    terms = segmentation_losses(output, label, counts(label), SETTINGS)
    assert terms.inter.item() == terms.intra.item() == 0.0
    assert terms.total.item() == pytest.approx(terms.ce.item() + 0.4 * terms.coarse.item())


def test_losses_compute_in_float32_under_autocast():
    output, label = make_output(2), make_label(2)
    output = SegmenterOutput(*(t.detach().float() for t in output))
    expected = segmentation_losses(output, label, counts(label), SETTINGS)
    with torch.autocast("cpu", torch.bfloat16):
        found = segmentation_losses(output, label, counts(label), SETTINGS)
    assert all(t.dtype == torch.float32 for t in found)
    assert [t.item() for t in found] == [t.item() for t in expected]


def test_cross_entropy_is_torchs_own_where_that_is_defined():
    output, label = make_output(2), make_label(2)
    enlarged = torch.nn.functional.interpolate(
        output.logits_BKhw, (LABEL_HEIGHT, LABEL_WIDTH), mode="bilinear"
    )
    expected = torch.nn.functional.cross_entropy(enlarged, label.long(), ignore_index=IGNORE)
    found = cross_entropy_sum(output.logits_BKhw, label) / counts(label).valid_pixels
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (11, 18), (20, 30)])
def test_nearest_labels_agree_with_torchs_nearest_exact(height, width):
    label = make_label(2)
    expected = torch.nn.functional.interpolate(label[:, None].float(), (height, width), mode="nearest-exact")
    assert torch.equal(nearest_labels(label, height, width).float(), expected[:, 0])
