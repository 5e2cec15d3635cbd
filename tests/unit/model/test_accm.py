"""The adaptive class center module: what it gathers, what it trusts, and when it keeps the global centers."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.config import HeadConfig
from pipeline.model.accm import AdaptiveClassCenters, assign, share_of_pixels, weigh
from pipeline.model.similarity import pixel_rows
from tests.layer_forms import (
    ABSENT,
    BATCH,
    CLASSES,
    DIM,
    FORMS,
    FUSIONS,
    HEIGHT,
    MASSES,
    PIXELS,
    SETTINGS,
    WIDTH,
    make_input,
    make_layer,
    name_of,
)

SCENE_FORMS = [form for form in FORMS if form["fusion"] != "off"]
every_form = pytest.mark.parametrize("form", FORMS, ids=name_of)
every_scene_form = pytest.mark.parametrize("form", SCENE_FORMS, ids=name_of)


def test_shares_of_a_pixel_and_shares_of_a_class_sum_to_one():
    _, coarse = (x.flatten(2) for x in make_input())
    for assignment in ("softmax", "hard", "pixel-softmax"):
        torch.testing.assert_close(
            assign(coarse, assignment, 0.5).sum(1), torch.ones(BATCH, PIXELS, dtype=torch.float64)
        )
    torch.testing.assert_close(
        share_of_pixels(coarse, 0.5, None).sum(2), torch.ones(BATCH, CLASSES, dtype=torch.float64)
    )


def test_the_first_of_equal_classes_gets_the_pixel_of_a_hard_assignment():
    coarse = torch.zeros(1, CLASSES, 2, dtype=torch.float64)
    coarse[0, 0, 1] = -1.0
    assert assign(coarse, "hard", 1.0)[0].T.tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]


@pytest.mark.parametrize("mass", MASSES)
def test_a_certain_share_weighs_one_in_every_mass_and_a_missing_share_nothing(mass):
    certain = torch.eye(CLASSES, dtype=torch.float64)[None]
    torch.testing.assert_close(weigh(certain, mass), certain, rtol=0, atol=1e-15)


def test_a_guess_weighs_its_share_its_square_or_nothing():
    guess = torch.full((1, CLASSES, 1), 1 / CLASSES, dtype=torch.float64)
    weights = [weigh(guess, mass)[0, 0, 0].item() for mass in ("sum", "squared", "above-chance")]
    assert weights == pytest.approx([1 / CLASSES, 1 / CLASSES**2, 0])


@every_scene_form
def test_scene_centers_of_a_certain_assignment_are_masked_means(form):
    layer = make_layer(**form)
    pixel, coarse = make_input()
    certain = torch.where(
        coarse == coarse.amax(1, keepdim=True),
        torch.zeros((), dtype=torch.float64),
        torch.full((), ABSENT, dtype=torch.float64),
    )
    scene = layer(pixel, certain).scene
    for b in range(BATCH):
        for k in range(CLASSES):
            mine = pixel[b][:, coarse[b].argmax(0) == k]
            assert scene.mass_BK[b, k].item() == pytest.approx(mine.shape[1], abs=1e-9)
            if mine.shape[1]:
                torch.testing.assert_close(scene.center_BKD[b, k], mine.mean(1))


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("mass", MASSES)
def test_a_temperature_near_zero_is_the_hard_assignment(fusion, mass):
    pixel, coarse = make_input()
    cold = make_layer(fusion=fusion, mass=mass, assignment_temperature=1e-4)(pixel, coarse)
    hard = make_layer(fusion=fusion, mass=mass, assignment="hard")(pixel, coarse)
    torch.testing.assert_close(cold.centers_BKD, hard.centers_BKD)
    torch.testing.assert_close(cold.logits_BKhw, hard.logits_BKhw)


@pytest.mark.parametrize("mass", MASSES)
def test_a_temperature_near_zero_gathers_each_class_at_its_surest_pixel(mass):
    layer = make_layer(assignment="pixel-softmax", mass=mass, assignment_temperature=1e-4)
    pixel, coarse = make_input()
    surest_BK = coarse.flatten(2).argmax(2)
    expected = torch.stack([pixel[b].flatten(1)[:, surest_BK[b]].T for b in range(BATCH)])
    torch.testing.assert_close(layer(pixel, coarse).scene.center_BKD, expected)


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("assignment", ["softmax", "hard", "pixel-softmax"])
def test_masses_of_a_class_softmax_share_out_every_pixel_once(fusion, assignment):
    pixel, coarse = make_input()
    scene = make_layer(fusion=fusion, assignment=assignment, mass="sum")(pixel, coarse).scene
    torch.testing.assert_close(scene.mass_BK.sum(1), torch.full((BATCH,), float(PIXELS), dtype=torch.float64))
    if assignment != "pixel-softmax":
        total = (scene.mass_BK[..., None] * scene.center_BKD).sum(1)
        torch.testing.assert_close(total, pixel.sum((2, 3)))


@every_form
def test_an_absent_class_keeps_its_global_center_exactly(form):
    layer = make_layer(**form)
    pixel, coarse = make_input()
    coarse[:, 2] = ABSENT
    found = layer(pixel, coarse)
    assert torch.equal(found.centers_BKD[:, 2], layer.centers.global_center_KD[2].expand(BATCH, -1))
    if form["fusion"] != "off":
        assert (found.scene.mass_BK[:, 2] == 0).all()
        present = found.scene.mass_BK > 0
        moved = (found.centers_BKD != layer.centers.global_center_KD).any(2)
        assert torch.equal(moved, present)


@every_form
def test_a_scene_that_is_ignored_whole_keeps_the_global_centers_exactly(form):
    layer = make_layer(**form)
    everything = torch.ones(BATCH, HEIGHT, WIDTH, dtype=torch.bool)
    found = layer(*make_input(), everything)
    assert torch.equal(found.centers_BKD, layer.centers.global_center_KD.expand(BATCH, -1, -1))
    if form["fusion"] != "off":
        assert not found.scene.mass_BK.any()
        assert not found.scene.center_BKD.any()


@every_scene_form
def test_ignored_pixels_are_inert_exactly_when_masked(form):
    layer = make_layer(**form)
    pixel, coarse = make_input()
    ignored = torch.zeros(BATCH, HEIGHT, WIDTH, dtype=torch.bool)
    ignored[:, 0] = True
    other_pixel, other_coarse = pixel.clone(), coarse.clone()
    other_pixel[:, :, 0] += 3.0
    other_coarse[:, 1, 0] += 5.0
    masked, unmasked = layer(pixel, coarse, ignored), layer(pixel, coarse)
    assert torch.equal(layer(other_pixel, other_coarse, ignored).centers_BKD, masked.centers_BKD)
    assert not torch.allclose(layer(other_pixel, other_coarse).centers_BKD, unmasked.centers_BKD, atol=1e-3)


@pytest.mark.parametrize("fusion", ["gate", "residual-mlp"])
@pytest.mark.parametrize("mass", MASSES)
def test_reliability_is_one_half_at_the_share_n0_of_the_pixels(fusion, mass):
    layer = make_layer(fusion=fusion, alpha=1.0, n0=0.25, mass=mass)
    pixel, _ = make_input()
    certain = torch.full((1, CLASSES, HEIGHT, WIDTH), ABSENT, dtype=torch.float64)
    certain[:, 1] = 0
    certain[:, 1, 0, :3] = ABSENT
    certain[:, 4, 0, :3] = 0  # three of twelve pixels: a quarter
    found = layer(pixel[:1], certain)
    assert found.scene.reliability_BK[0].tolist() == pytest.approx([0, 0.75, 0, 0, 0.5])
    if fusion == "gate":
        middle = (pixel[0, :, 0, :3].mean(1) + layer.centers.global_center_KD[4]) / 2
        torch.testing.assert_close(found.centers_BKD[0, 4], middle)


@pytest.mark.parametrize("fusion", ["gate", "residual-mlp"])
def test_an_n0_that_vanishes_in_float32_still_keeps_the_global_center_of_an_absent_class(fusion):
    layer = make_layer(fusion=fusion, assignment="hard", alpha=1.0, n0=1e-60).float()
    pixel, coarse = (x.float() for x in make_input())
    coarse[:, 2] = ABSENT
    found = layer(pixel, coarse)
    assert torch.equal(found.centers_BKD[:, 2], layer.centers.global_center_KD[2].expand(BATCH, -1))
    assert found.logits_BKhw.isfinite().all()


@pytest.mark.parametrize("fusion", ["mlp", "replace"])
def test_a_fusion_without_reliability_says_one(fusion):
    scene = make_layer(fusion=fusion)(*make_input()).scene
    assert (scene.reliability_BK == 1).all()


def test_gate_with_alpha_one_and_a_vanishing_n0_is_replace():
    pixel, coarse = make_input()
    gate = make_layer(fusion="gate", alpha=1.0, n0=1e-300)(pixel, coarse)
    torch.testing.assert_close(gate.centers_BKD, make_layer(fusion="replace")(pixel, coarse).centers_BKD)


@pytest.mark.parametrize("settings", [{"fusion": "residual-mlp"}, {"fusion": "gate", "learn_alpha": True}])
@pytest.mark.parametrize("assignment", ["softmax", "hard", "pixel-softmax"])
@pytest.mark.parametrize("mass", MASSES)
def test_a_residual_fusion_starts_as_the_plain_similarity_head_and_can_leave_it(settings, assignment, mass):
    torch.manual_seed(0)
    config = HeadConfig(dim=DIM, assignment=assignment, mass=mass, **settings)
    fresh = AdaptiveClassCenters(CLASSES, config).double()
    pixel, coarse = (x.flatten(2) for x in make_input())
    centers, _ = fresh(pixel.transpose(1, 2), coarse)
    assert torch.equal(centers, fresh.global_center_KD.expand(BATCH, -1, -1))
    centers.square().sum().backward()
    leaving = fresh.learned_alpha if fresh.learned_alpha is not None else fresh.mlp[2].weight
    assert leaving.grad.abs().sum() > 0


def test_alpha_is_a_parameter_exactly_where_it_is_learned():
    for fusion in (*FUSIONS, "off"):
        module = AdaptiveClassCenters(CLASSES, HeadConfig(dim=DIM, fusion=fusion, learn_alpha=True))
        assert (module.learned_alpha is not None) == (fusion == "gate")
    assert AdaptiveClassCenters(CLASSES, SETTINGS).learned_alpha is None


# What was found on real scenes: a coarse prediction that knows nothing makes all centers one.

UNTRAINED_STD = 0.1
"""Standard deviation of the coarse logits of a fresh head: weights of 0.01, 128 features after a ReLU."""


def untrained_scene(mass: str, num_classes: int, n0: float):
    """What the gate sees of features with a common mean, under a linear classifier near zero."""
    torch.manual_seed(0)
    module = AdaptiveClassCenters(num_classes, HeadConfig(dim=32, fusion="gate", mass=mass, n0=n0)).double()
    noise = torch.randn(4, 32, 3000, dtype=torch.float64)
    pixel = 1.0 + noise
    classifier = torch.randn(num_classes, 32, dtype=torch.float64)
    coarse = UNTRAINED_STD / math.sqrt(32) * torch.einsum("kd,bdn->bkn", classifier, noise)
    return module(pixel.transpose(1, 2), coarse)[1]


@pytest.mark.parametrize("num_classes", [11, 19, 150])
def test_reliability_of_a_guess_is_near_one_with_the_plain_mass_and_zero_above_chance(num_classes):
    n0 = 0.001
    pixel = torch.randn(1, 500, DIM, dtype=torch.float64)
    guess = torch.zeros(1, num_classes, 500, dtype=torch.float64)
    found = {}
    for mass in MASSES:
        config = HeadConfig(dim=DIM, fusion="gate", mass=mass, n0=n0)
        found[mass] = AdaptiveClassCenters(num_classes, config).double()(pixel, guess)[1].reliability_BK
    torch.testing.assert_close(found["sum"], torch.full_like(found["sum"], 1 / (1 + n0 * num_classes)))
    squared = torch.full_like(found["sum"], 1 / (1 + n0 * num_classes**2))
    torch.testing.assert_close(found["squared"], squared)
    assert (found["above-chance"] < 1e-9).all()


@pytest.mark.parametrize("n0", [0.001, 0.01])
def test_an_untrained_prediction_is_trusted_with_the_plain_mass_and_less_with_the_others(n0):
    trust = {mass: untrained_scene(mass, 19, n0).reliability_BK.mean().item() for mass in MASSES}
    assert trust["sum"] > (0.94 if n0 == 0.001 else 0.8)
    assert trust["squared"] < 0.8
    assert trust["above-chance"] < 0.75
    if n0 == 0.01:
        assert trust["squared"] < 0.25
        assert trust["above-chance"] < 0.25


def test_scene_centers_of_an_untrained_prediction_are_one_with_the_plain_mass_and_differ_above_chance():
    similar = {}
    for mass in MASSES:
        center_BKD = untrained_scene(mass, 19, 0.001).center_BKD
        unit = torch.nn.functional.normalize(center_BKD, dim=2)
        cosine = unit @ unit.transpose(1, 2)
        similar[mass] = (cosine.sum((1, 2)) - 19).mean().item() / (19 * 18)
    assert similar["sum"] > 0.999
    assert similar["squared"] > 0.99
    assert similar["above-chance"] < 0.95


def test_the_plain_gate_turns_all_centers_into_one_and_the_residual_does_not():
    pixel = 1.0 + torch.randn(BATCH, DIM, HEIGHT, WIDTH, dtype=torch.float64)
    guess = 0.01 * torch.randn(BATCH, CLASSES, HEIGHT, WIDTH, dtype=torch.float64)

    def spread(settings: dict) -> float:
        torch.manual_seed(0)
        config = HeadConfig(dim=DIM, **settings)
        centers, _ = AdaptiveClassCenters(CLASSES, config).double()(pixel_rows(pixel), guess.flatten(2))
        return centers.std(1).mean().item()

    plain = spread({"fusion": "off"})
    assert spread({"fusion": "residual-mlp"}) == plain
    assert spread({"fusion": "gate", "learn_alpha": True}) == plain
    assert spread({"fusion": "gate", "mass": "above-chance", "n0": 0.1}) > 0.8 * plain
    assert spread({"fusion": "gate"}) < 0.05 * plain
    assert spread({"fusion": "replace"}) < 0.05 * plain
