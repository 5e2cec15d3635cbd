"""What every form does with numbers at the edge, and under autocast: finite, bounded, and how far off."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.config import HeadConfig
from pipeline.model.ccs import ClassCenterSimilarity
from pipeline.model.scene_numbers import scene_numbers
from pipeline.model.similarity import NORM_EPS
from tests.layer_forms import (
    ABSENT,
    BATCH,
    CLASSES,
    DIM,
    FORMS,
    HEIGHT,
    PIXELS,
    SIMILARITIES,
    WIDTH,
    make_input,
    make_layer,
    name_of,
)

every_form = pytest.mark.parametrize("form", FORMS, ids=name_of)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HALVES = (torch.bfloat16, torch.float16)
EXTRAS = ({}, {"similarity": "dot", "tau": 1.0}, {"class_norm": True})


def gradients(layer, pixel, coarse, ignored=None) -> list[torch.Tensor]:
    """Of the mean squared logit: pixels first, then coarse logits, then every parameter."""
    layer.zero_grad()
    pixel, coarse = pixel.detach().requires_grad_(), coarse.detach().requires_grad_()
    found = layer(pixel, coarse, ignored)
    assert found.logits_BKhw.dtype == found.centers_BKD.dtype == torch.float32
    assert found.logits_BKhw.isfinite().all()
    assert found.centers_BKD.isfinite().all()
    (found.logits_BKhw.square().sum() / max(found.logits_BKhw.numel(), 1)).backward()
    inputs = [torch.zeros_like(x) if x.grad is None else x.grad for x in (pixel, coarse)]
    return inputs + [parameter.grad for parameter in layer.parameters()]


@every_form
@pytest.mark.parametrize("extra", EXTRAS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scenes_with_nothing_to_see_give_finite_gradients(form, extra, dtype):
    layer = make_layer(**form, **extra).float()
    pixel, coarse = (x.to(dtype) for x in make_input())
    absent = coarse.clone()
    absent[:, 1:4] = ABSENT
    ignored = torch.ones(BATCH, HEIGHT, WIDTH, dtype=torch.bool)
    zero = torch.zeros_like
    for case in (
        (pixel, absent),  # classes that no pixel has
        (pixel, zero(coarse)),  # a guess: masses above chance are zero or a rounding error
        (zero(pixel), coarse),  # vectors without length
        (zero(pixel), zero(coarse)),
        (pixel, coarse, ignored),  # no pixel to gather
        (pixel[:0], coarse[:0]),  # no scene at all
    ):
        found = gradients(layer, *case)
        assert all(gradient is not None and gradient.isfinite().all() for gradient in found)


@every_form
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_gradient_of_features_of_zero_is_bounded_by_the_least_length(form, similarity, dtype):
    """At x = 0 a logit changes by tau <unit(C), dx> / NORM_EPS, or tau <C, dx>; no other path is open."""
    layer = make_layer(**form, similarity=similarity, tau=6.0).to(dtype)
    _, coarse = make_input()
    pixel = torch.zeros(BATCH, DIM, HEIGHT, WIDTH, dtype=dtype, requires_grad=True)
    found = layer(pixel, coarse.to(dtype))
    found.logits_BKhw.sum().backward()
    longest = 1 / NORM_EPS if similarity == "cosine" else found.centers_BKD.norm(dim=2).max().item()
    assert pixel.grad.norm(dim=1).max().item() <= CLASSES * 6.0 * longest * 1.0001


def test_an_empty_batch_has_zero_gradients_that_are_connected():
    for form in FORMS:
        layer = make_layer(**form, learn_tau=True, learn_alpha=form["fusion"] == "gate").float()
        pixel, coarse = (x[:0].float() for x in make_input())
        found = gradients(layer, pixel, coarse)
        assert not any(gradient.any() for gradient in found)


@every_form
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_under_autocast_the_layer_computes_what_it_computes_of_the_same_numbers_in_float32(form, dtype):
    layer = make_layer(**form, class_norm=True).float()
    pixel, coarse = (x.to(dtype) for x in make_input())
    with torch.autocast("cpu", dtype):
        found = layer(pixel, coarse)
    expected = layer(pixel.float(), coarse.float())
    assert found.logits_BKhw.dtype == found.centers_BKD.dtype == torch.float32
    assert torch.equal(found.logits_BKhw, expected.logits_BKhw)
    assert torch.equal(found.centers_BKD, expected.centers_BKD)
    if found.scene is not None:
        assert all(x.dtype == torch.float32 for x in found.scene)


def sure_input() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features (1, D, h, w) and two 1x1 kernels: to signed features, and to coarse logits far from a tie."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.arange(PIXELS) % CLASSES
    kernel = 0.4 * torch.randn(DIM, DIM, 1, 1, dtype=torch.float64, generator=generator)
    coarse_kernel = torch.zeros(CLASSES, DIM, 1, 1, dtype=torch.float64)
    coarse_kernel[:, :CLASSES, 0, 0] = torch.eye(CLASSES)
    feature = 0.5 * torch.randn(1, DIM, PIXELS, dtype=torch.float64, generator=generator)
    feature[0, kinds, torch.arange(PIXELS)] += 3.0
    return feature.view(1, DIM, HEIGHT, WIDTH), kernel, coarse_kernel


@every_form
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_autocast_moves_logits_by_no_more_than_rounding_the_convolutions_can(form, similarity):
    """Float32 is the reference; the bound is what rounding can do at first order.

    Autocast rounds to half precision, each by at most the share u of its size (2^-8 in bfloat16, 2^-11 in
    float16): the features and kernels of the convolutions, and what comes out of them. A logit then
    moves by at most u sum |dZ/dv| |v| over all of these numbers v, to first order; a tenth more is for
    the second order, and 1e-5 tau for float32 itself.
    """
    tau = 15.0 if similarity == "cosine" else 1.0
    layer = make_layer(**form, similarity=similarity, tau=tau)
    feature, kernel, coarse_kernel = sure_input()
    pixel, coarse = F.conv2d(feature, kernel), F.conv2d(feature, coarse_kernel)
    zeros = torch.zeros_like

    def logits(*v: torch.Tensor) -> torch.Tensor:
        return layer(F.conv2d(v[0], v[1]) + v[3], F.conv2d(v[0], v[2]) + v[4]).logits_BKhw

    variables = (feature, kernel, coarse_kernel, zeros(pixel), zeros(coarse))
    sizes = (feature, kernel, coarse_kernel, pixel, coarse)
    slopes = torch.autograd.functional.jacobian(logits, variables)
    per_share = sum(
        (slope.abs() * size.abs()).flatten(4).sum(4) for slope, size in zip(slopes, sizes, strict=True)
    )
    layer.float()
    reference = layer(pixel.float(), coarse.float()).logits_BKhw
    for dtype in HALVES:
        with torch.autocast("cpu", dtype):
            rounded = F.conv2d(feature.float(), kernel.float())
            rounded_coarse = F.conv2d(feature.float(), coarse_kernel.float())
            found = layer(rounded, rounded_coarse).logits_BKhw
        assert rounded.dtype == dtype
        bound = 1.1 * torch.finfo(dtype).eps / 2 * per_share + 1e-5 * tau
        assert ((found - reference).abs() <= bound).all()
        assert bound.median() < 0.1 * reference.abs().max(), "a bound that says something"


def test_features_near_the_float16_overflow_of_their_squares_stay_finite():
    layer = ClassCenterSimilarity(CLASSES, HeadConfig(dim=512))
    pixel = torch.full((1, 512, 4, 4), 20.0, dtype=torch.float16)  # 512 * 20^2 is past float16's 65504
    found = layer(pixel, torch.zeros(1, CLASSES, 4, 4, dtype=torch.float16))
    assert found.logits_BKhw.isfinite().all()
    assert found.centers_BKD.isfinite().all()


def test_masses_do_not_stall_where_a_bfloat16_sum_does():
    layer = make_layer(fusion="gate").float()
    pixel = torch.randn(1, DIM, 60, 60).bfloat16()
    coarse = torch.zeros(1, CLASSES, 60, 60).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        scene = layer(pixel, coarse).scene
    torch.testing.assert_close(scene.mass_BK, torch.full((1, CLASSES), 3600 / CLASSES))


@every_form
@pytest.mark.parametrize("extra", EXTRAS, ids=str)
def test_no_form_reads_a_value_back_or_branches_on_one(form, extra):
    """Tensors without values, on torch's meta device, raise where Python would look at one."""
    layer = make_layer(**form, **extra, learn_tau=True, learn_alpha=form["fusion"] == "gate").to("meta")
    pixel, coarse = (x.flatten(2).to("meta") for x in make_input())
    ignored = torch.ones(BATCH, PIXELS, dtype=torch.bool, device="meta")
    # The parts, since meta has no autocast to turn off.
    centers, scene = layer.centers(pixel.transpose(1, 2), coarse, ignored)
    logits = layer.scale(layer.compare(pixel.transpose(1, 2), centers))
    assert logits.shape == (BATCH, PIXELS, CLASSES)
    assert centers.shape == (BATCH, CLASSES, DIM)
    assert (scene is None) == (form["fusion"] == "off")
    if scene is not None:
        scene_numbers(centers, layer.centers.global_center_KD, scene)
