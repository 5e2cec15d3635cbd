"""Steps whose update did not happen: learnt of a step late, noted with their samples, and bounded.

A skipped step counts as done: its batch is consumed and not repeated, the schedule goes on. Every rank
sees the same outcomes at the same steps, so what is gathered here, and the end of the run above the
bound, are those of all ranks alike.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pipeline.config import Config
from pipeline.data.loader import Batch
from pipeline.errors import NonFiniteLossError, first_few
from pipeline.train.context import RunContext
from pipeline.train.reduce import gather_objects
from pipeline.train.state import TrainState
from pipeline.train.step import LateNumbers

logger = logging.getLogger(__name__)

EVENT = "skipped"


@dataclass(frozen=True)
class _Step:
    """A step whose outcome is on its way from the device."""

    step: int
    outcome: LateNumbers
    samples: list[tuple[int, str]]
    """This rank's positions and keys."""


class SkippedSteps:
    """Hears of every step's outcome and counts, in the TrainState, the updates that did not happen."""

    def __init__(self, config: Config, context: RunContext) -> None:
        self._limit, self._lr = config.train.max_skipped_steps, config.optim.lr
        self._context = context
        self._unread: deque[_Step] = deque()
        self._last = ""

    def watch(self, state: TrainState, outcome: Tensor, batches: Sequence[Batch]) -> None:
        """Send for the outcome of the step that `state` has just advanced over; see `UpdateGate`."""
        samples = [pair for batch in batches for pair in zip(batch.positions, batch.keys, strict=True)]
        self._unread.append(_Step(state.step, LateNumbers(outcome), samples))

    def note(self, state: TrainState, newest: bool) -> None:
        """Count and record the skipped ones among the steps watched; the newest one waits for the device.

        A collective where a step was skipped, which all ranks know alike.
        """
        while len(self._unread) > (0 if newest else 1):
            step = self._unread.popleft()
            skipped, loss, gradient_norm = step.outcome.read()
            if skipped:
                state.skipped_steps += 1
                self._record(step, state.skipped_steps, loss, gradient_norm)

    def too_many(self, state: TrainState) -> bool:
        """True above the bound."""
        return state.skipped_steps > self._limit

    def error(self, state: TrainState) -> NonFiniteLossError:
        """What to raise once there are too many: how many, the last one's batch, and what to type next."""
        return NonFiniteLossError(
            f"steps skipped, as their loss or gradient was not finite: {state.skipped_steps}, allowed are "
            f"{self._limit}{self._last and f'; the last is {self._last}'}. The weights are sound and saved "
            f"as of step {state.step}, the run's journal has all keys: to go on from there, raise "
            "--train.max_skipped_steps; should it be the learning rate, start another --name with a "
            f"smaller --optim.lr than {self._lr:g}, or with --optim.clip_norm 1"
        )

    def _record(self, step: _Step, count: int, loss: float, gradient_norm: float) -> None:
        gathered = gather_objects(step.samples, self._context.world)
        keys = [key for _, key in sorted(pair for samples in gathered for pair in samples)]
        self._context.event(
            EVENT, step.step, loss=_json(loss), gradient_norm=_json(gradient_norm), samples=keys,
        )  # fmt: skip
        found = f"loss {loss:.3g}, gradient norm {gradient_norm:.3g}"
        if math.isfinite(loss) and math.isfinite(gradient_norm):
            found = "BatchNorm statistics that are not finite"
        self._last = f"step {step.step} with {found} and samples {first_few(keys)}"
        if self._context.world.is_main:
            logger.warning("[event] skipped %s; %d of at most %d", self._last, count, self._limit)


def _json(value: float) -> float | str:
    """The number, or its name where strict JSON has none for it."""
    return value if math.isfinite(value) else str(value)
