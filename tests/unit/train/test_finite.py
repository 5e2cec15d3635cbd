"""A step that is not finite changes no bit of weights, optimizer, buffers and averaged weights."""

import pytest
import torch

from pipeline.config import BackboneConfig, Config, HeadConfig, ModelConfig, OptimConfig, TrainConfig
from pipeline.model.segmenter import build_segmenter, channels_last
from pipeline.train import step
from pipeline.train.optim import Ema, build_optimizer, optimizer_tensors
from pipeline.train.reduce import SingleProcess
from pipeline.train.step import MicroBatch, StepRunner
from pipeline.world import World
from tests.poison import KINDS, poisoned

CPU, NUM_CLASSES = torch.device("cpu"), 5
SMALL = ModelConfig(BackboneConfig(depth=10, base_width=8), HeadConfig(dim=8))


@pytest.fixture(autouse=True)
def one_thread():
    """Bits depend on how many threads share a sum; and tiny pictures need no second one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Learner:
    """A small network, its optimizer and averaged weights, on one rank."""

    def __init__(self, optim: OptimConfig, mask: torch.Tensor | None = None):
        config = Config(model=SMALL, optim=optim, train=TrainConfig(precision="float32"))
        torch.manual_seed(0)
        self.model, averaged = (build_segmenter(SMALL, NUM_CLASSES) for _ in range(2))
        for model in (self.model, averaged):
            model.register_buffer("mask", mask)
            channels_last(model)
        with torch.no_grad():  # a zero with a sign: a sum with a zero loses it
            self.model.backbone.conv1.weight[0] = -0.0
        self.optimizer = build_optimizer(optim, self.model)
        self.ema = Ema(self.model, averaged, decay=0.9)
        self.runner = StepRunner(
            self.model, self.optimizer, SingleProcess(self.model), class_names=list("abcde"), config=config,
            world=World(), device=CPU,
        )  # fmt: skip
        self._poison, self._steps = "", 0
        self.model.backbone.conv1.register_forward_hook(self._spoil)

    def _spoil(self, module, inputs, output):
        return poisoned(self._poison, output) if self._poison not in ("", "loss") else output

    def step(self, monkeypatch, poison=""):
        """A step on two micro-batches that depend on its number."""
        generator = torch.Generator().manual_seed(self._steps)
        micro_batches = [
            MicroBatch(
                torch.randint(0, 256, (2, 3, 32, 32), generator=generator, dtype=torch.uint8),
                torch.randint(0, NUM_CLASSES, (2, 32, 32), generator=generator, dtype=torch.uint8),
                position,
            )
            for position in range(2)
        ]
        self._poison = poison
        with monkeypatch.context() as patch:
            if poison == "loss":
                losses = step.segmentation_losses
                patch.setattr(step, "segmentation_losses", lambda *a: plus_nan(losses(*a)))
            denominators = self.runner.agree(micro_batches, False).denominators
            self.runner.step(micro_batches, denominators, self._steps)
        self._steps += 1
        self.ema.update(self.model, self._steps, self.runner.gate.skipped)

    def bits(self):
        """Every number that a step may change, as bytes."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.averaged.state_dict().items()}
        tensors |= optimizer_tensors(self.model, self.optimizer)
        return {k: v.detach().clone().contiguous().reshape(-1).view(torch.uint8) for k, v in tensors.items()}


def plus_nan(terms):
    return terms._replace(total=terms.total + torch.nan)


def differing(before, after):
    assert before.keys() == after.keys()
    return [key for key in before if not torch.equal(before[key], after[key])]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_not_finite_changes_no_bit(monkeypatch, kind, name):
    learner = Learner(OptimConfig(name=name, lr=0.01, clip_norm=1.0 if name == "adamw" else 0.0))
    learner.step(monkeypatch)
    before = learner.bits()
    learner.step(monkeypatch, kind)
    skipped, loss, gradient_norm = learner.runner.gate.outcome.tolist()
    assert skipped == 1
    finite = [torch.tensor(value).isfinite().item() for value in (loss, gradient_norm)]
    assert finite == [kind in ("gradient", "statistics"), kind in ("loss", "statistics")]
    assert differing(before, learner.bits()) == []
    learner.step(monkeypatch)
    assert learner.runner.gate.outcome[0] == 0
    moved = differing(before, learner.bits())
    assert {key.split(".")[0] for key in moved} >= {"model", "ema"}
    assert any("num_batches_tracked" in key for key in moved)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_first_step_that_is_skipped_leaves_an_optimizer_that_begins_as_a_new_one(monkeypatch, name):
    # Fused SGD makes its momentum in the first step, from memory that a skipped one does not write.
    learner, fresh = (Learner(OptimConfig(name=name, lr=0.01)) for _ in range(2))
    learner.step(monkeypatch, "activation")
    fresh._steps += 1
    for _ in range(2):
        learner.step(monkeypatch), fresh.step(monkeypatch)
    assert differing(fresh.bits(), learner.bits()) == []


def test_a_constant_that_is_infinite_by_design_skips_nothing(monkeypatch):
    mask = torch.full((1, 2, 3, 4), -torch.inf)  # becomes channels last
    learner = Learner(OptimConfig(), mask=mask)
    before = learner.bits()
    learner.step(monkeypatch)
    assert learner.runner.gate.outcome[0] == 0
    assert "model.backbone.conv1.weight" in differing(before, learner.bits())
