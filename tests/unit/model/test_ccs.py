"""The properties of the class center similarity layer, as identities in float64."""

from __future__ import annotations

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.func import functional_call

from pipeline.config import HeadConfig
from pipeline.model.ccs import AdaptiveClassCenters, ClassCenterSimilarity, assign, gather

BATCH, CLASSES, DIM, HEIGHT, WIDTH = 2, 5, 8, 3, 4
FUSIONS = ("residual-mlp", "gate", "off")
SETTINGS = HeadConfig(dim=DIM, dropout=0.0)
ABSENT = -1e4


def make_layer(seed: int = 0, **settings: object) -> ClassCenterSimilarity:
    """A layer in float64 in which every part does something: no parameter is left at zero."""
    torch.manual_seed(seed)
    layer = ClassCenterSimilarity(CLASSES, dataclasses.replace(SETTINGS, **settings)).double()
    with torch.no_grad():
        layer.bias_K.normal_()
        if layer.centers.fusion == "residual-mlp":
            for parameter in layer.centers.mlp.parameters():
                parameter.normal_(std=0.5)
    return layer


def make_input(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pixel = torch.randn(BATCH, DIM, HEIGHT, WIDTH, dtype=torch.float64, generator=generator)
    coarse = 2 * torch.randn(BATCH, CLASSES, HEIGHT, WIDTH, dtype=torch.float64, generator=generator)
    return pixel, coarse


def numpy_layer(layer: ClassCenterSimilarity, pixel, coarse) -> tuple[np.ndarray, np.ndarray]:
    """The layer pixel by pixel and class by class, from its equations alone."""
    centers, x, a = layer.centers, pixel.numpy(), coarse.numpy()
    g = centers.global_center_KD.detach().numpy()
    logits, all_centers = np.zeros_like(a), np.zeros((BATCH, CLASSES, DIM))
    for b in range(BATCH):
        mass, summed = np.zeros(CLASSES), np.zeros((CLASSES, DIM))
        for i in range(HEIGHT):
            for j in range(WIDTH):
                weights = np.exp(a[b, :, i, j] / centers.temperature)
                weights /= weights.sum()
                for k in range(CLASSES):
                    mass[k] += weights[k]
                    summed[k] += weights[k] * x[b, :, i, j]
        for k in range(CLASSES):
            scene = summed[k] / mass[k]
            trust = mass[k] / (mass[k] + centers.n0 * HEIGHT * WIDTH)
            center = g[k].copy()
            if centers.fusion == "gate":
                center += centers.alpha * trust * (scene - g[k])
            elif centers.fusion == "residual-mlp":
                first, _, last = centers.mlp
                w1, b1 = first.weight.detach().numpy(), first.bias.detach().numpy()
                w2, b2 = last.weight.detach().numpy(), last.bias.detach().numpy()
                hidden = np.maximum(w1 @ np.concatenate([scene, g[k]]) + b1, 0)
                center += trust * (w2 @ hidden + b2)
            all_centers[b, k] = center
            for i in range(HEIGHT):
                for j in range(WIDTH):
                    pixel_ij = x[b, :, i, j]
                    similarity = center @ pixel_ij
                    if layer.similarity == "cosine":
                        similarity /= math.sqrt(center @ center + 1e-6) * math.sqrt(
                            pixel_ij @ pixel_ij + 1e-6
                        )
                    logits[b, k, i, j] = layer.fixed_tau * similarity + layer.bias_K[k].item()
    return logits, all_centers


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_layer_equals_its_equations_written_as_loops(fusion, similarity):
    layer = make_layer(
        fusion=fusion, similarity=similarity, n0=0.05, alpha=0.7, assignment_temperature=0.5, tau=6.0
    )
    pixel, coarse = make_input()
    logits, centers = layer(pixel, coarse)
    expected_logits, expected_centers = numpy_layer(layer, pixel, coarse)
    np.testing.assert_allclose(centers.detach().numpy(), expected_centers, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(logits.detach().numpy(), expected_logits, rtol=1e-10, atol=1e-12)


def test_dot_without_fusion_at_tau_one_is_a_1x1_convolution_with_bias():
    layer = make_layer(fusion="off", similarity="dot", tau=1.0)
    pixel, coarse = make_input()
    weight = layer.centers.global_center_KD[:, :, None, None]
    expected = torch.nn.functional.conv2d(pixel, weight, layer.bias_K)
    torch.testing.assert_close(layer(pixel, coarse)[0], expected)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_permuting_classes_permutes_logits_and_centers(fusion):
    layer, order = make_layer(fusion=fusion), torch.tensor([3, 0, 4, 2, 1])
    pixel, coarse = make_input()
    logits, centers = layer(pixel, coarse)
    permuted = copy.deepcopy(layer)
    with torch.no_grad():
        permuted.centers.global_center_KD.copy_(layer.centers.global_center_KD[order])
        permuted.bias_K.copy_(layer.bias_K[order])
    permuted_logits, permuted_centers = permuted(pixel, coarse[:, order])
    torch.testing.assert_close(permuted_logits, logits[:, order])
    torch.testing.assert_close(permuted_centers, centers[:, order])


@pytest.mark.parametrize("temperature", [1.0, 1e-4])
def test_scene_centers_of_a_certain_assignment_are_masked_means(temperature):
    pixel, coarse = (t.flatten(2) for t in make_input())
    certain = coarse if temperature < 1 else 1e4 * coarse
    scene = gather(assign(certain, temperature, None), pixel)
    hard = coarse.argmax(1)
    for b in range(BATCH):
        for k in range(CLASSES):
            mine = pixel[b][:, hard[b] == k]
            assert scene.mass_BK[b, k].item() == pytest.approx(mine.shape[1], abs=1e-9)
            if mine.shape[1]:
                torch.testing.assert_close(scene.center_BKD[b, k], mine.mean(1))


def test_class_softmax_shares_out_every_pixel_once():
    pixel, coarse = (t.flatten(2) for t in make_input())
    scene = gather(assign(coarse, 1.0, None), pixel)
    torch.testing.assert_close(scene.mass_BK.sum(1), torch.full((BATCH,), 12.0, dtype=torch.float64))
    total = (scene.mass_BK[..., None] * scene.center_BKD).sum(1)
    torch.testing.assert_close(total, pixel.sum(2))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_permuting_pixels_permutes_logits_and_leaves_centers(fusion):
    layer = make_layer(fusion=fusion)
    pixel, coarse = make_input()
    order = torch.randperm(HEIGHT * WIDTH, generator=torch.Generator().manual_seed(1))

    def shuffled(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2)[:, :, order].view_as(x)

    logits, centers = layer(pixel, coarse)
    other_logits, other_centers = layer(shuffled(pixel), shuffled(coarse))
    torch.testing.assert_close(other_logits, shuffled(logits))
    torch.testing.assert_close(other_centers, centers)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_image_does_not_feel_the_other_images(fusion):
    layer = make_layer(fusion=fusion)
    pixel, coarse = make_input()
    logits, centers = layer(pixel, coarse)
    alone_logits, alone_centers = layer(pixel[1:], coarse[1:])
    torch.testing.assert_close(alone_logits, logits[1:])
    torch.testing.assert_close(alone_centers, centers[1:])


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_cosine_logits_stay_within_tau_of_the_bias(fusion, scale):
    layer = make_layer(fusion=fusion, tau=15.0)
    pixel, coarse = make_input()
    logits, _ = layer(scale * pixel, coarse)
    assert ((logits - layer.bias_K[:, None, None]).abs() <= 15.0).all()


def test_cosine_logits_ignore_the_scale_of_the_features_where_scene_centers_decide_alone():
    layer = make_layer(fusion="gate", alpha=1.0, n0=1e-15)
    pixel, coarse = make_input()
    torch.testing.assert_close(layer(7 * pixel, coarse)[0], layer(pixel, coarse)[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_an_absent_class_keeps_its_global_center(fusion):
    layer = make_layer(fusion=fusion)
    pixel, coarse = make_input()
    coarse[:, 2] = ABSENT
    pixel.requires_grad_()
    coarse.requires_grad_()
    logits, centers = layer(pixel, coarse)
    assert torch.equal(centers[:, 2], layer.centers.global_center_KD[2].expand(BATCH, -1))
    assert fusion == "off" or not torch.equal(centers[0, 1], layer.centers.global_center_KD[1])
    (logits.square().sum() + centers.square().sum()).backward()
    assert pixel.grad.isfinite().all()
    assert coarse.grad is None or coarse.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_zero_features_have_bounded_gradients(fusion, dtype):
    layer = make_layer(fusion=fusion).to(dtype)
    pixel = torch.zeros(BATCH, DIM, HEIGHT, WIDTH, dtype=dtype, requires_grad=True)
    _, coarse = make_input()
    layer(pixel, coarse.to(dtype))[0].sum().backward()
    assert pixel.grad.abs().max() < 1e6
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_residual_mlp_starts_as_the_plain_similarity_head():
    torch.manual_seed(0)
    fresh = AdaptiveClassCenters(CLASSES, SETTINGS).double()
    pixel, coarse = (t.flatten(2) for t in make_input())
    centers = fresh(pixel, coarse)
    assert torch.equal(centers, fresh.global_center_KD.expand(BATCH, -1, -1))
    centers.square().sum().backward()
    assert fresh.mlp[2].weight.grad.abs().sum() > 0


def test_reliability_is_one_half_at_the_share_n0_of_the_pixels():
    layer = make_layer(fusion="gate", alpha=1.0, n0=0.25)
    pixel, _ = make_input()
    hard = torch.full((1, CLASSES, HEIGHT, WIDTH), ABSENT, dtype=torch.float64)
    hard[:, 1] = 0
    hard[:, 1, 0, :3] = ABSENT
    hard[:, 4, 0, :3] = 0  # three of twelve pixels: a quarter
    centers = layer(pixel[:1], hard)[1]
    scene, own = pixel[0, :, 0, :3].mean(1), layer.centers.global_center_KD[4]
    torch.testing.assert_close(centers[0, 4], (scene + own) / 2)


def test_ignored_pixels_are_inert_exactly_when_masked():
    layer = make_layer()
    pixel, coarse = make_input()
    ignored = torch.zeros(BATCH, HEIGHT, WIDTH, dtype=torch.bool)
    ignored[:, 0] = True
    other_pixel, other_coarse = pixel.clone(), coarse.clone()
    other_pixel[:, :, 0] += 3.0
    other_coarse[:, 1, 0] -= 5.0
    torch.testing.assert_close(
        layer(other_pixel, other_coarse, ignored)[1], layer(pixel, coarse, ignored)[1], rtol=0, atol=0
    )
    assert not torch.allclose(layer(other_pixel, other_coarse)[1], layer(pixel, coarse)[1], atol=1e-3)


def test_a_scene_that_is_ignored_whole_keeps_the_global_centers():
    layer = make_layer()
    pixel, coarse = make_input()
    everything = torch.ones(BATCH, HEIGHT, WIDTH, dtype=torch.bool)
    logits, centers = layer(pixel, coarse, everything)
    assert torch.equal(centers, layer.centers.global_center_KD.expand(BATCH, -1, -1))
    assert logits.isfinite().all()


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_gradients_equal_finite_differences(fusion, similarity):
    layer = make_layer(fusion=fusion, similarity=similarity, learn_tau=True, tau=3.0, n0=0.1)
    names = [name for name, _ in layer.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    pixel, coarse = (x[:, :, :2, :2].contiguous().requires_grad_() for x in make_input())

    def outputs(pixel_BDhw, coarse_BKhw, *values):
        state = dict(zip(names, values, strict=True))
        return functional_call(layer, state, (pixel_BDhw, coarse_BKhw))

    assert torch.autograd.gradcheck(outputs, (pixel, coarse, *parameters), fast_mode=True)


def test_a_learned_tau_starts_at_its_setting_and_gets_a_gradient():
    fixed, learned = make_layer(tau=9.0), make_layer(tau=9.0, learn_tau=True)
    pixel, coarse = make_input()
    logits, _ = learned(pixel, coarse)
    torch.testing.assert_close(logits, fixed(pixel, coarse)[0], rtol=1e-6, atol=1e-6)
    logits.square().sum().backward()
    assert learned.log_tau.grad.abs() > 0
    assert fixed.log_tau is None


def test_layer_computes_in_float32_under_autocast():
    torch.manual_seed(0)
    layer = ClassCenterSimilarity(CLASSES, SETTINGS)
    with torch.no_grad():
        layer.centers.mlp[2].weight.normal_(std=0.1)
    pixel, coarse = torch.randn(1, DIM, 30, 40), torch.randn(1, CLASSES, 30, 40)
    pixel, coarse = pixel.bfloat16(), coarse.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        logits, centers = layer(pixel, coarse)
    expected_logits, expected_centers = layer(pixel.float(), coarse.float())
    assert logits.dtype == centers.dtype == torch.float32
    assert torch.equal(logits, expected_logits)
    assert torch.equal(centers, expected_centers)


def test_features_near_the_float16_overflow_of_their_squares_stay_finite():
    layer = ClassCenterSimilarity(CLASSES, HeadConfig(dim=512))
    pixel = torch.full((1, 512, 4, 4), 20.0, dtype=torch.float16)  # 512 * 20^2 is past float16's 65504
    logits, centers = layer(pixel, torch.zeros(1, CLASSES, 4, 4, dtype=torch.float16))
    assert logits.isfinite().all()
    assert centers.isfinite().all()
