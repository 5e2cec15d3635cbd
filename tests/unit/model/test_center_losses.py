"""What each form of the center distances is zero for, largest for, and moves."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.model.center_losses import (
    cosine_distance,
    cross_entropy_distance,
    hinge,
    identity,
    inter_class,
    intra_class,
    l1_distance,
    loss_centers,
    softmax_relation,
)
from pipeline.model.denominators import pixel_weight
from pipeline.model.losses import segmentation_losses
from pipeline.model.pixel_labels import nearest_labels, presence
from pipeline.model.similarity import cosine
from tests.unit.model import loss_loops
from tests.unit.model.loss_loops import (
    CENTER_SOURCES,
    CLASSES,
    DIM,
    HEIGHT,
    IGNORE,
    INTRA_FORMS,
    INTRA_MEANS,
    WIDTH,
    counts,
    leaves,
    make_label,
    make_output,
)


def everyone(batch: int = 1, classes: int = CLASSES) -> torch.Tensor:
    """Every class is present."""
    return torch.ones(batch, classes, dtype=torch.bool)


def relation(center: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    return softmax_relation(center, center.detach(), present)


def where_of(label: torch.Tensor, n_min: int = 1):
    return presence(label, (HEIGHT, WIDTH), CLASSES, n_min)


# Between centers


def test_orthonormal_centers_have_no_distance_to_lose():
    orthonormal = torch.eye(CLASSES, DIM, dtype=torch.float64)[None]
    assert hinge(orthonormal, everyone(), 0.0, 2).item() == 0.0
    assert identity(orthonormal, everyone()).item() == 0.0
    # Of products the softmax is flat; longer orthogonal centers are far enough apart for it.
    assert relation(orthonormal, everyone()).item() > 0.0
    assert relation(10 * orthonormal, everyone()).item() == 0.0


def test_the_softmax_relation_of_two_classes_does_not_see_that_they_are_identical():
    assert relation(torch.ones(1, 2, DIM, dtype=torch.float64), everyone(1, 2)).item() == 0.0


@pytest.mark.parametrize("num_present", [2, 3, CLASSES])
def test_identical_centers_lose_all(num_present):
    identical = torch.ones(1, CLASSES, DIM, dtype=torch.float64)
    present = everyone()
    present[:, num_present:] = False
    assert hinge(identical, present, 0.0, 2).item() == pytest.approx(1.0, abs=1e-6)
    assert identity(identical, present).item() == pytest.approx(1.0, abs=1e-6)
    each = 1 / num_present - 0.5 / (CLASSES - 1)
    assert relation(identical, present).item() == pytest.approx((num_present - 1) ** 2 * each**2)


def test_opposite_centers_are_far_apart_for_the_hinge_and_near_for_the_identity():
    opposite = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]], dtype=torch.float64)
    assert hinge(opposite, everyone(1, 2), 0.0, 2).item() == 0.0
    assert identity(opposite, everyone(1, 2)).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("form", [lambda c, p: hinge(c, p, 0.0, 2), identity, relation])
@pytest.mark.parametrize("num_present", [0, 1])
def test_fewer_than_two_classes_have_no_inter_class_distance(form, num_present):
    identical = torch.ones(2, CLASSES, DIM, dtype=torch.float64, requires_grad=True)
    present = torch.zeros(2, CLASSES, dtype=torch.bool)
    present[:, :num_present] = True
    loss_B = form(identical, present)
    loss_B.sum().backward()
    assert loss_B.tolist() == [0.0, 0.0]
    assert not identical.grad.any()


@pytest.mark.parametrize("form", [lambda c, p: hinge(c, p, -0.2, 2), identity, relation])
def test_absent_classes_take_no_part_in_the_inter_class_distance(form):
    generator = torch.Generator().manual_seed(0)
    center = torch.randn(1, CLASSES, DIM, dtype=torch.float64, generator=generator)
    present = everyone()
    present[0, 1] = False
    changed = center.clone()
    changed[0, 1] *= -7
    assert torch.equal(form(center, present), form(changed, present))
    center.requires_grad_()
    form(center, present).sum().backward()
    assert not center.grad[0, 1].any()
    assert center.grad.any()


@given(st.integers(0, 1000), st.integers(2, 7))
@settings(max_examples=25)
def test_mean_cosine_of_centers_never_falls_below_the_simplex(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(1, classes, DIM, dtype=torch.float64, generator=generator)
    # With the margin at -1 and power 1 the loss is the mean cosine plus one.
    mean_cosine = hinge(center, everyone(1, classes), -1.0, 1).item() - 1.0
    assert mean_cosine >= -1 / (classes - 1) - 1e-9


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_a_simplex_reaches_the_smallest_margin(classes):
    simplex = torch.eye(classes, dtype=torch.float64) - 1 / classes
    least = -1 / (classes - 1)
    assert hinge(simplex[None], everyone(1, classes), least, 1).item() == pytest.approx(0.0, abs=1e-5)
    assert hinge(simplex[None], everyone(1, classes), least - 0.1, 1).item() == pytest.approx(0.1, abs=1e-5)


def test_the_softmax_relation_moves_each_center_as_if_the_others_stood_still():
    config, label, output = loss_loops.settings(inter_form="softmax"), make_label(2), make_output(2)
    key, present = output.centers_BKD.detach().clone(), where_of(label).present_BK

    def against_fixed(query):
        return softmax_relation(query, key, present)

    assert torch.autograd.gradcheck(against_fixed, (output.centers_BKD,))
    (expected,) = torch.autograd.grad(against_fixed(output.centers_BKD).sum() / 2, output.centers_BKD)
    loss = inter_class(output.centers_BKD, present, counts(label, config), config)
    (found,) = torch.autograd.grad(loss, output.centers_BKD)
    torch.testing.assert_close(found, expected)


# Between pixels and their center

OWN = torch.arange(CLASSES)[None]
"""One pixel of each class."""


def random_centers(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, CLASSES, DIM, dtype=torch.float64, generator=generator)


def cosines(pixel_BDN: torch.Tensor, center_BKD: torch.Tensor) -> torch.Tensor:
    return cosine(pixel_BDN.transpose(1, 2), center_BKD)


@pytest.mark.parametrize("q", [1, 2])
def test_cosine_is_zero_exactly_where_pixels_point_at_their_center(q):
    center = random_centers()
    lengths = torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64)
    aligned_BDN = (center * lengths[:, None]).transpose(1, 2)
    assert cosine_distance(cosines(aligned_BDN, center), OWN, q).tolist()[0] == pytest.approx(
        [0.0] * 4, abs=1e-5
    )
    turned_BDN = aligned_BDN.clone()
    turned_BDN[..., 2] *= -1
    expected = [0.0, 0.0, 2.0**q, 0.0]
    assert cosine_distance(cosines(turned_BDN, center), OWN, q).tolist()[0] == pytest.approx(
        expected, abs=1e-4
    )


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_cosine_is_above_zero_for_any_other_direction(seed):
    center = random_centers(seed)
    pixel_BDN = random_centers(seed + 1).transpose(1, 2)
    assert (cosine_distance(cosines(pixel_BDN, center), OWN, 2) > 1e-4).all()


def test_l1_is_zero_exactly_where_the_pixel_is_its_center():
    center = random_centers()
    same_BDN = center.transpose(1, 2).clone()
    assert l1_distance(same_BDN, center, OWN).tolist() == [[0.0] * CLASSES]
    same_BDN[0, 3, 1] += 0.5
    assert l1_distance(same_BDN, center, OWN).tolist()[0] == pytest.approx([0.0, 0.5 / DIM, 0.0, 0.0])


@pytest.mark.parametrize(("tau", "least"), [(1.0, 1.98), (15.0, 0.0)])
def test_tau_bounds_the_cross_entropy_of_the_best_that_centers_can_be(tau, least):
    simplex = (torch.eye(19, dtype=torch.float64) - 1 / 19)[None]
    own = torch.arange(19)[None]
    found = cross_entropy_distance(cosines(1e3 * simplex, simplex), own, tau)
    assert found.mean().item() == pytest.approx(math.log1p(18 * math.exp(-tau * 19 / 18)), abs=1e-4)
    assert found.mean().item() == pytest.approx(least, abs=5e-3)


def test_cross_entropy_falls_as_pixels_leave_other_centers_for_their_own():
    center = torch.eye(CLASSES, DIM, dtype=torch.float64)[None]
    tau, own = 15.0, torch.zeros(1, 3, dtype=torch.long)
    pixel_BDN = torch.zeros(1, DIM, 3, dtype=torch.float64)
    pixel_BDN[0, 0, 0] = pixel_BDN[0, 1, 1] = 1.0  # its own center, another, none
    near, far, nowhere = cross_entropy_distance(cosines(pixel_BDN, center), own, tau)[0].tolist()
    rest = (CLASSES - 1) * math.exp(-tau)
    assert near == pytest.approx(math.log1p(rest), rel=1e-3)
    assert far == pytest.approx(tau + math.log1p(rest), rel=1e-5)
    assert nowhere == pytest.approx(math.log(CLASSES))


@pytest.mark.parametrize("intra_form", INTRA_FORMS)
@pytest.mark.parametrize("center_source", CENTER_SOURCES)
def test_intra_moves_labelled_pixels_of_present_classes_and_no_others(intra_form, center_source):
    config = loss_loops.settings(
        intra_form=intra_form, center_source=center_source, n_min=3, detach_center=True
    )
    output, label = make_output(1, seed=3), make_label(1, seed=3)
    where = where_of(label, n_min=3)
    center = loss_centers(output, where, config)
    intra_class(output, center, where, counts(label, config), config).backward()
    small = nearest_labels(label, HEIGHT, WIDTH)[0].long()
    moved = output.features_BDhw.grad[0].abs().sum(0) > 0
    present = torch.cat((where.present_BK[0], torch.zeros(256 - CLASSES, dtype=torch.bool)))
    assert (small == IGNORE).any()
    assert (~present[small] & (small != IGNORE)).any()
    assert torch.equal(moved, present[small])


@pytest.mark.parametrize("intra_mean", INTRA_MEANS)
def test_the_weights_of_all_pixels_add_up_to_one(intra_mean):
    config = loss_loops.settings(intra_mean=intra_mean, n_min=2)
    label = make_label(5)
    label[3] = IGNORE
    where = where_of(label, n_min=2)
    weight_BK = pixel_weight(where, counts(label, config), intra_mean)
    assert (weight_BK * where.count_BK).sum().item() == pytest.approx(1.0)
    assert torch.equal(weight_BK > 0, where.present_BK)


def test_what_counts_alike_is_pairs_classes_or_pixels():
    # Image 0: 14 pixels of class 0, one of class 1. Image 1: 15 of class 0.
    label = torch.zeros(2, HEIGHT, WIDTH, dtype=torch.uint8)
    label[0, 0, 0] = 1
    where, denominators = where_of(label), counts(label, loss_loops.settings())
    for mean, rows in {
        "image-class": [[1 / (3 * 14), 1 / 3], [1 / (3 * 15), 0]],
        "batch-class": [[1 / (2 * 29), 1 / 2], [1 / (2 * 29), 0]],
        "pixel": [[1 / 30, 1 / 30], [1 / 30, 0]],
    }.items():
        found = pixel_weight(where, denominators, mean)[:, :2].flatten().tolist()
        assert found == pytest.approx([weight for row in rows for weight in row])


# Where centers come from


def test_label_image_centers_are_the_means_of_labelled_pixels():
    config, label, output = loss_loops.settings(center_source="label-image"), make_label(3), make_output(3)
    label[2] = IGNORE
    expected = loss_loops.centers_of(output, label.numpy(), "label-image")
    found = loss_centers(output, where_of(label), config).detach().numpy()
    assert found == pytest.approx(expected, rel=1e-12)
    assert not found[2].any()


@pytest.mark.parametrize("intra_form", INTRA_FORMS)
@pytest.mark.parametrize("center_source", CENTER_SOURCES)
def test_detached_centers_are_moved_by_the_inter_class_distance_alone(center_source, intra_form):
    def gradients(**changes):
        config = loss_loops.settings(
            center_source=center_source,
            detach_center=True,
            intra_form=intra_form,
            lambda_coarse=0.0,
            **changes,
        )
        label, output = make_label(2), make_output(2)
        found = segmentation_losses(output, label, counts(label, config), config)
        (config.lambda_inter * found.inter + config.lambda_intra * found.intra).backward()
        *_, pixels, center, common = (t.grad for t in leaves(output))
        return pixels, {"accm": center, "label-image": pixels, "global": common}[center_source]

    moved, center = gradients(lambda_inter=0.0, lambda_intra=1.0)
    assert moved.any()
    assert center_source == "label-image" or center is None or not center.any()
    _, center = gradients(lambda_inter=1.0, lambda_intra=0.0)
    assert center.any()


@pytest.mark.parametrize("intra_form", INTRA_FORMS)
def test_detached_label_means_pull_pixels_as_if_the_means_stood_still(intra_form):
    config = loss_loops.settings(center_source="label-image", detach_center=True, intra_form=intra_form)
    label, output = make_label(2), make_output(2)
    where, denominators = where_of(label), counts(label, config)
    means = loss_centers(output, where, config).detach()

    def intra(feature_BDhw):
        return intra_class(output._replace(features_BDhw=feature_BDhw), means, where, denominators, config)

    assert torch.autograd.gradcheck(intra, (output.features_BDhw,), fast_mode=True)
    (expected,) = torch.autograd.grad(intra(output.features_BDhw), output.features_BDhw)
    found = segmentation_losses(output, label, denominators, config).intra
    (gradient,) = torch.autograd.grad(found, output.features_BDhw)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("intra_form", INTRA_FORMS)
@pytest.mark.parametrize("center_source", CENTER_SOURCES)
@pytest.mark.parametrize("detach_center", [False, True])
def test_cosines_of_the_prediction_change_no_loss_and_no_gradient(intra_form, center_source, detach_center):
    config = loss_loops.settings(
        intra_form=intra_form, center_source=center_source, detach_center=detach_center
    )
    label = make_label(2)
    found = []
    for told in (True, False):
        output = make_output(2)
        if told:
            output = output._replace(
                cosine_BNK=cosine(output.features_BDhw.flatten(2).transpose(1, 2), output.centers_BKD)
            )
        loss = segmentation_losses(output, label, counts(label, config), config).intra
        gradients = torch.autograd.grad(loss, loss_loops.leaves(output), allow_unused=True)
        found.append([loss, *(0.0 if gradient is None else gradient for gradient in gradients)])
    for with_them, without in zip(*found, strict=True):
        torch.testing.assert_close(with_them, without)


@pytest.mark.parametrize("center_source", CENTER_SOURCES)
@pytest.mark.parametrize("detach_center", [False, True])
def test_only_centers_of_the_prediction_that_move_take_its_cosines(center_source, detach_center):
    config = loss_loops.settings(
        intra_form="cosine", center_source=center_source, detach_center=detach_center
    )
    label, output = make_label(2), make_output(2)
    # Cosines that no pixel has: all is lost, (1 - (-1))^2, exactly where they are taken.
    told = output._replace(cosine_BNK=-torch.ones(2, HEIGHT * WIDTH, CLASSES, dtype=torch.float64))
    found = segmentation_losses(told, label, counts(label, config), config).intra.item()
    assert (found == pytest.approx(4.0)) == (center_source == "accm" and not detach_center)
