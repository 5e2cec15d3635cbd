"""The properties of the class center similarity layer in all its forms, as identities in float64."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from tests.layer_forms import (
    BATCH,
    CLASSES,
    DIM,
    FORMS,
    HEIGHT,
    SIMILARITIES,
    WIDTH,
    layer_by_hand,
    make_input,
    make_layer,
    name_of,
)

every_form = pytest.mark.parametrize("form", FORMS, ids=name_of)
EXTRAS = [
    {"fusion": "gate", "learn_alpha": True},
    {"learn_tau": True},
    {"class_norm": True},
    {"class_norm": True, "similarity": "dot", "fusion": "gate", "learn_tau": True},
]


def same_as_by_hand(ignored: torch.Tensor | None, **settings: object) -> None:
    layer = make_layer(**settings)
    pixel, coarse = make_input()
    found = layer(pixel, coarse, ignored)
    logits, centers = layer_by_hand(layer, pixel, coarse, ignored, **settings)
    np.testing.assert_allclose(found.centers_BKD.detach().numpy(), centers, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.logits_BKhw.detach().numpy(), logits, rtol=1e-10, atol=1e-12)
    assert found.global_KD is layer.centers.global_center_KD


@every_form
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_layer_equals_its_equations_written_as_loops(form, similarity):
    same_as_by_hand(
        None, **form, similarity=similarity, n0=0.05, alpha=0.7, assignment_temperature=0.5, tau=6.0
    )


@every_form
def test_layer_equals_its_loops_over_the_pixels_that_are_not_ignored(form):
    ignored = torch.zeros(BATCH, HEIGHT, WIDTH, dtype=torch.bool)
    ignored[0, 0] = ignored[1, :, 1:] = True
    same_as_by_hand(ignored, **form, n0=0.05, alpha=0.7)


@pytest.mark.parametrize("settings", EXTRAS, ids=str)
def test_learned_and_normalised_forms_equal_their_equations_written_as_loops(settings):
    same_as_by_hand(None, **settings)


def test_dot_without_fusion_at_tau_one_is_a_1x1_convolution_with_bias():
    layer = make_layer(fusion="off", similarity="dot", tau=1.0)
    pixel, coarse = make_input()
    weight = layer.centers.global_center_KD[:, :, None, None]
    expected = torch.nn.functional.conv2d(pixel, weight, layer.bias_K)
    torch.testing.assert_close(layer(pixel, coarse).logits_BKhw, expected)


@every_form
@pytest.mark.parametrize("extra", [{}, {"similarity": "dot"}, {"class_norm": True}], ids=str)
def test_permuting_classes_permutes_logits_and_centers(form, extra):
    layer, order = make_layer(**form, **extra), torch.tensor([3, 0, 4, 2, 1])
    pixel, coarse = make_input()
    permuted = copy.deepcopy(layer)
    with torch.no_grad():
        permuted.centers.global_center_KD.copy_(layer.centers.global_center_KD[order])
        permuted.bias_K.copy_(layer.bias_K[order])
        if layer.class_norm is not None:
            permuted.class_norm.weight.copy_(layer.class_norm.weight[order])
            permuted.class_norm.bias.copy_(layer.class_norm.bias[order])
    expected, found = layer(pixel, coarse), permuted(pixel, coarse[:, order])
    torch.testing.assert_close(found.logits_BKhw, expected.logits_BKhw[:, order])
    torch.testing.assert_close(found.centers_BKD, expected.centers_BKD[:, order])


@every_form
def test_permuting_pixels_permutes_logits_and_leaves_centers(form):
    layer = make_layer(**form)
    pixel, coarse = make_input()
    order = torch.randperm(HEIGHT * WIDTH, generator=torch.Generator().manual_seed(1))

    def shuffled(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2)[:, :, order].view_as(x)

    expected, found = layer(pixel, coarse), layer(shuffled(pixel), shuffled(coarse))
    torch.testing.assert_close(found.logits_BKhw, shuffled(expected.logits_BKhw))
    torch.testing.assert_close(found.centers_BKD, expected.centers_BKD)


@every_form
def test_an_image_does_not_feel_the_other_images(form):
    layer = make_layer(**form)
    pixel, coarse = make_input()
    together, alone = layer(pixel, coarse), layer(pixel[1:], coarse[1:])
    torch.testing.assert_close(alone.logits_BKhw, together.logits_BKhw[1:])
    torch.testing.assert_close(alone.centers_BKD, together.centers_BKD[1:])


@every_form
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_cosine_logits_stay_within_tau_of_the_bias(form, scale):
    layer = make_layer(**form, tau=15.0)
    pixel, coarse = make_input()
    logits = layer(scale * pixel, coarse).logits_BKhw
    assert ((logits - layer.bias_K[:, None, None]).abs() <= 15.0).all()


@pytest.mark.parametrize("form", [f for f in FORMS if f["fusion"] == "replace"], ids=name_of)
def test_cosine_logits_ignore_the_scale_of_the_features_where_scene_centers_decide_alone(form):
    layer = make_layer(**form)
    pixel, coarse = make_input()
    # Long enough for the 1e-3 in the length of a vector to vanish from it.
    large, larger = layer(1e5 * pixel, coarse), layer(7e5 * pixel, coarse)
    torch.testing.assert_close(larger.logits_BKhw, large.logits_BKhw, rtol=0, atol=1e-8)


def test_class_norm_leaves_logits_of_mean_zero_and_bounded_by_the_number_of_classes():
    layer = make_layer(class_norm=True)
    torch.nn.init.ones_(layer.class_norm.weight)
    torch.nn.init.zeros_(layer.class_norm.bias)
    logits = layer(*make_input()).logits_BKhw
    torch.testing.assert_close(logits.mean(1), torch.zeros_like(logits[:, 0]))
    assert (logits.abs() <= math.sqrt(CLASSES - 1)).all()


@every_form
@pytest.mark.parametrize(
    "extra", [{}, {"similarity": "dot"}, {"class_norm": True, "learn_tau": True}], ids=str
)
def test_gradients_equal_finite_differences(form, extra):
    layer = make_layer(**form, **extra, tau=3.0, n0=0.1, learn_alpha=form["fusion"] == "gate")
    names = [name for name, _ in layer.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    pixel, coarse = (x[:, :, :2, :2].contiguous().requires_grad_() for x in make_input())

    def outputs(pixel_BDhw, coarse_BKhw, *values):
        state = dict(zip(names, values, strict=True))
        return functional_call(layer, state, (pixel_BDhw, coarse_BKhw))[:2]

    assert torch.autograd.gradcheck(outputs, (pixel, coarse, *parameters), fast_mode=True)


def test_a_learned_tau_starts_at_its_setting_and_gets_a_gradient():
    fixed, learned = make_layer(tau=9.0), make_layer(tau=9.0, learn_tau=True)
    pixel, coarse = make_input()
    logits = learned(pixel, coarse).logits_BKhw
    torch.testing.assert_close(logits, fixed(pixel, coarse).logits_BKhw, rtol=1e-6, atol=1e-6)
    logits.square().sum().backward()
    assert learned.log_tau.grad.abs() > 0
    assert fixed.log_tau is None


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_logits_lie_channels_last_also_for_one_image(similarity, batch):
    # One image leaves the batch's stride open; with another than this torch copies the logits at every turn.
    layer = make_layer(similarity=similarity)
    logits = layer(*(x[:batch] for x in make_input())).logits_BKhw
    dense = torch.empty(batch, CLASSES, HEIGHT, WIDTH, memory_format=torch.channels_last)
    assert logits.stride() == dense.stride()


@every_form
def test_the_cosines_that_are_told_are_those_of_pixels_and_centers_and_move_both(form):
    layer = make_layer(**form, learn_alpha=form["fusion"] == "gate")
    pixel, coarse = (x.requires_grad_() for x in make_input())
    told = layer(pixel, coarse)
    expected = torch.nn.functional.cosine_similarity(
        pixel.flatten(2).transpose(1, 2)[:, :, None], told.centers_BKD[:, None], dim=3
    )
    torch.testing.assert_close(told.cosine_BNK, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    of_told, of_expected = (
        torch.autograd.grad(
            cosine, (pixel, coarse, *layer.parameters()), weight, retain_graph=True, materialize_grads=True
        )
        for cosine in (told.cosine_BNK, expected)
    )
    assert of_told[0].any()
    torch.testing.assert_close(of_told, of_expected, atol=1e-4, rtol=1e-4)
    assert make_layer(**form, similarity="dot")(pixel, coarse).cosine_BNK is None


class NewMemories(TorchDispatchMode):
    """Tensors that operations made in a memory of their own."""

    def __init__(self, given: torch.Tensor) -> None:
        super().__init__()
        self.memories = {given.untyped_storage().data_ptr()}
        self.alive: list[torch.Tensor] = []  # so that no memory is given out twice

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if tensor.untyped_storage().data_ptr() not in self.memories:
                self.memories.add(tensor.untyped_storage().data_ptr())
                self.alive.append(tensor)
        return made


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("layout", "sets"), [(torch.channels_last, 0), (torch.contiguous_format, 1)], ids=str
)
def test_features_that_lie_channels_last_are_compared_without_a_second_set_of_them(batch, layout, sets):
    # No centers or logits are as many, so that sizes tell what a tensor is.
    pixel, coarse = torch.randn(batch, DIM, 64, 64), torch.randn(batch, CLASSES, 64, 64)
    pixel = pixel.contiguous(memory_format=layout).requires_grad_()
    layer = make_layer().float()
    with NewMemories(pixel) as made:
        layer(pixel, coarse)
    assert sum(tensor.numel() >= pixel.numel() for tensor in made.alive) == sets
