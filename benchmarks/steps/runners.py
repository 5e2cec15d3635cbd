"""The two ways to take a step: as `fit` does, and as the plainest PyTorch loop would."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from itertools import cycle
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.data.labels import CITYSCAPES
from pipeline.data.loader import Batch, LoaderUsage
from pipeline.model.denominators import Denominators
from pipeline.model.losses import segmentation_losses
from pipeline.model.segmenter import Segmenter, build_segmenter, channels_last
from pipeline.train import metrics
from pipeline.train.compile import compile_network
from pipeline.train.optim import build_optimizer
from pipeline.train.progress import Progress
from pipeline.train.reduce import SingleProcess
from pipeline.train.state import TrainState
from pipeline.train.step import LateNumbers, StepRunner, autocast, to_device
from pipeline.world import World
from steps.batches import make_batches
from steps.clock import Clock, Moment
from steps.task import NUM_CLASSES, Task

_BATCHES = 4
"""Different batches, taken in turn."""


class Runner(Protocol):
    """A network that learns, a step a call."""

    model: Segmenter
    clock: Clock

    def step(self) -> None:
        """One optimizer step; on CUDA it may still run when this returns."""
        ...


class TimedReduction(SingleProcess):
    """One rank's reduction, which also notes when the forward and the backward began and ended."""

    def __init__(self, model: nn.Module, clock: Clock) -> None:
        super().__init__(model)
        self._clock = clock
        self.moments: list[Moment] = []
        """Of the last micro-batch: forward begins, backward begins, backward has ended."""

    @contextmanager
    def micro_batch(self, last: bool) -> Generator[None, None, None]:
        """The forward, with its losses, and the backward."""
        self.moments = [self._clock.mark()]
        yield

    def backward(self, loss: Tensor) -> None:
        """Plain backward."""
        self.moments.append(self._clock.mark())
        super().backward(loss)
        self.moments.append(self._clock.mark())


class Pipeline:
    """The inside of `fit`'s loop, with all that it does between two batches; only the journal is left out."""

    def __init__(self, task: Task) -> None:
        self.config, self._device = task.config(), torch.device(task.device)
        self.model, optimizer = build_learner(self.config, self._device)
        self.clock = Clock(self._device)
        self.reduction = TimedReduction(self.model, self.clock)
        self._runner = step_runner(self.model, optimizer, self.reduction, self.config, self._device)
        self._batches = cycle(decoded(task))
        self._state = TrainState()
        self._progress = Progress(self.config, World(), self._state)
        self._late = LateNumbers(torch.zeros(2))
        self._outcome = LateNumbers(torch.zeros(3))

    def step(self) -> None:
        """One turn of the loop."""
        begin_s = time.perf_counter()
        batch = next(self._batches)
        self._progress.waited(time.perf_counter() - begin_s)
        on_device = [to_device(batch, self._device)]
        agreement = self._runner.agree(on_device, False, 0)
        self._runner.step(on_device, agreement.denominators, self._state.step)
        self._state.advance(self.config.train.batch_global)
        self._late.read()
        skipped, *_ = self._outcome.read()
        assert not skipped, "a step of the benchmark has no finite loss"
        self._late, self._outcome = agreement.late, LateNumbers(self._runner.gate.outcome)
        if self._state.step % self.config.train.metrics_every == 0:
            self._record()

    def _record(self) -> None:
        window = self._progress.window(LoaderUsage())
        values = self._runner.summary(window.share) | window.values()
        assert values.pop(metrics.BROKEN_RANKS) == 0, "the weights are not finite"
        values[metrics.QUARANTINED] = 0.0
        values[metrics.SAMPLES_PER_S] = self._progress.samples_per_s(self._state)
        self._progress.step_line(self._state, values, window.bottleneck)


class Bare:
    """Forward, loss, backward, update, and nothing else.

    It is given what a loop may be given: batches as tensors, pinned where there is a GPU, the losses'
    counts of each, a constant learning rate. It keeps no curve, asks nobody and checks nothing.
    """

    def __init__(self, task: Task) -> None:
        config, self._device = task.config(), torch.device(task.device)
        self._head, self._precision = config.model.head, config.train.precision
        self.model, self._optimizer = build_learner(config, self._device)
        self.clock = Clock(self._device)
        runner = step_runner(self.model, self._optimizer, SingleProcess(self.model), config, self._device)
        self._batches = cycle([self._prepared(batch, runner) for batch in decoded(task)])

    def step(self) -> None:
        """What every tutorial has."""
        image_B3HW, label_BHW, denominators = next(self._batches)
        image_B3HW = image_B3HW.to(self._device, non_blocking=True)
        label_BHW = label_BHW.to(self._device, non_blocking=True)
        self._optimizer.zero_grad()
        with autocast(self._precision, self._device):
            output = self.model(image_B3HW, label_BHW)
        segmentation_losses(output, label_BHW, denominators, self._head).total.backward()
        self._optimizer.step()

    def _prepared(self, batch: Batch, runner: StepRunner) -> tuple[Tensor, Tensor, Denominators]:
        denominators = runner.agree([to_device(batch, self._device)], False).denominators
        tensors = [torch.from_numpy(batch.image_BHW3), torch.from_numpy(batch.label_BHW)]
        if self._device.type == "cuda":
            tensors = [tensor.pin_memory() for tensor in tensors]
        return tensors[0].permute(0, 3, 1, 2), tensors[1], denominators


def build_learner(config: Config, device: torch.device) -> tuple[Segmenter, torch.optim.Optimizer]:
    """The network and its optimizer, as `assemble` builds them; always with the same weights."""
    torch.manual_seed(config.train.seed)
    model = build_segmenter(config.model, NUM_CLASSES)
    channels_last(model)
    model = model.to(device)
    if config.train.compile:
        assert compile_network(model, config, World(), device), "not compiled, so not measured as such"
    return model, build_optimizer(config.optim, model)


def step_runner(
    model: Segmenter, optimizer: torch.optim.Optimizer, reduction: SingleProcess, config: Config,
    device: torch.device,
) -> StepRunner:  # fmt: skip
    """The pipeline's own, of a world of one."""
    return StepRunner(
        model, optimizer, reduction, class_names=CITYSCAPES.names, config=config, world=World(), device=device
    )


def decoded(task: Task) -> list[Batch]:
    """The task's batches."""
    return make_batches(_BATCHES, task.batch, *task.crop(), NUM_CLASSES)


def refuse_idle(runner: Runner) -> None:
    """Takes a step; ends the measurement where it does not compute every gradient or changes no weight."""
    before = [parameter.detach().clone() for parameter in runner.model.parameters()]
    runner.step()
    num_moved = 0
    for (name, parameter), old in zip(runner.model.named_parameters(), before, strict=True):
        assert parameter.grad is not None, f"{name} has no gradient"
        assert bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite"
        num_moved += not torch.equal(parameter, old)
    assert num_moved > len(before) / 2, f"a step changed {num_moved} of {len(before)} parameters"
