"""A whole step gives the device its work and waits for none of it."""

from __future__ import annotations

import pytest
import torch

from pipeline.config import BackboneConfig, Config, HeadConfig, ModelConfig, OptimConfig, TrainConfig
from pipeline.model.segmenter import build_segmenter
from pipeline.train.optim import Ema, build_optimizer
from pipeline.train.reduce import SingleProcess
from pipeline.train.step import MicroBatch, StepRunner
from pipeline.world import World
from tests.nothing_read import NothingIsReadBack

CPU, CLASSES = torch.device("cpu"), 5
HEADS = {
    "default": HeadConfig(dim=8),
    "labels-at-work": HeadConfig(
        dim=8, fusion="gate", learn_alpha=True, learn_tau=True, assignment="hard", class_norm=True,
        mask_ignored=True, ohem_share=0.3, lambda_balanced=0.5, center_source="label-image", n_min=2,
        inter_form="softmax", intra_form="l1", intra_mean="batch-class", detach_center=True,
    ),
    "plain": HeadConfig(dim=8, kind="plain", ohem_share=0.3),
    "ocr": HeadConfig(dim=8, kind="ocr"),
    "deeplabv3plus": HeadConfig(dim=8, kind="deeplabv3plus"),
}  # fmt: skip


def make_micro_batches() -> list[MicroBatch]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 2, 3, 32, 48), dtype=torch.uint8, generator=generator)
    label = torch.randint(0, CLASSES, (2, 2, 32, 48), dtype=torch.uint8, generator=generator)
    label[:, :, :8] = 255
    return [MicroBatch(image[i], label[i], position=i) for i in range(2)]


@pytest.mark.parametrize("optim", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", HEADS)
def test_nothing_is_read_back_from_the_device_inside_a_step(name, precision, optim):
    torch.manual_seed(0)
    settings = ModelConfig(BackboneConfig(depth=10, base_width=8), HEADS[name])
    config = Config(
        model=settings,
        optim=OptimConfig(name=optim, clip_norm=1.0),
        train=TrainConfig(precision=precision),
    )
    model, averaged = (build_segmenter(settings, CLASSES) for _ in range(2))
    optimizer, ema = build_optimizer(config.optim, model), Ema(model, averaged, decay=0.9)
    runner = StepRunner(
        model, optimizer, SingleProcess(model), class_names=list("abcde"), config=config, world=World(),
        device=CPU,
    )  # fmt: skip
    micro_batches = make_micro_batches()
    before = model.backbone.conv1.weight.detach().clone()
    with NothingIsReadBack():
        for step in range(2):
            agreement = runner.agree(micro_batches, stop_requested=False)
            runner.step(micro_batches, agreement.denominators, step)
            ema.update(model, step + 1, runner.gate.skipped)
        with pytest.raises(AssertionError):
            float(runner.gate.skipped)
    assert runner.gate.skipped.item() == 0
    assert not torch.equal(model.backbone.conv1.weight, before)


def test_dropout_is_drawn_anew_for_every_position_and_seed_and_the_same_for_the_same() -> None:
    """A seed of the run alone would drop the same channels in every step, and no resume would tell."""

    def masks(seed: int) -> list[tuple[bool, ...]]:
        settings = ModelConfig(BackboneConfig(depth=10, base_width=8), HEADS["plain"])
        model = build_segmenter(settings, CLASSES)
        config = Config(model=settings, optim=OptimConfig(name="adamw"), train=TrainConfig(seed=seed))
        runner = StepRunner(
            model, build_optimizer(config.optim, model), SingleProcess(model), class_names=list("abcde"),
            config=config, world=World(), device=CPU,
        )  # fmt: skip
        found = []
        for micro in [*make_micro_batches(), make_micro_batches()[0]]:
            agreement = runner.agree([micro], stop_requested=False)
            runner.step([micro], agreement.denominators, 0)
            found.append(tuple((torch.rand(64) < 0.5).tolist()))  # what the step left of its generator
        return found

    first, second, again = masks(0)
    assert first == again
    assert first != second
    assert masks(1)[0] != first
