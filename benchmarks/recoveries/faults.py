"""The faults that are done to a training, and what each run of one cost."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.tracking.journal import COMMIT, START
from recoveries.training import Training


def kill_rank(training: Training, chooser: random.Random) -> None:
    """SIGKILL to one rank's process."""
    chooser.choice(training.ranks()).kill()


def hang_rank(training: Training, chooser: random.Random) -> None:
    """SIGSTOP to one rank's process: it holds all that it has and does nothing."""
    chooser.choice(training.ranks()).suspend()


def kill_driver(training: Training, chooser: random.Random) -> None:
    """SIGKILL to the process of the job, under `make train`."""
    training.driver().kill()


def kill_head(training: Training, chooser: random.Random) -> None:
    """SIGKILL to Ray's global store, under `make train`."""
    training.head().kill()


FAULTS: Mapping[str, Callable[[Training, random.Random], None]] = {
    "kill": kill_rank, "hang": hang_rank, "driver": kill_driver, "head": kill_head,
}  # fmt: skip
SUPERVISED = ("driver", "head")
"""What nobody but `make train` recovers from by itself."""


@dataclass(frozen=True)
class Recovery:
    """What one fault cost."""

    seconds: float
    """From the fault to the first new step."""
    steps_lost: int


def recover(training: Training, fault: str, settle_s: float, chooser: random.Random) -> Recovery:
    """Lets training go on for `settle_s` and to a checkpoint, does a fault to it, waits for the next step."""
    settled_s = time.time() + settle_s
    training.wait_until(lambda: any(commit.time_s > settled_s for commit in training.events(COMMIT)))
    starts = len(training.events(START))
    time.sleep(chooser.uniform(0.0, 1.0))  # anywhere between two checkpoints
    begin_s, reached = time.time(), training.step()
    FAULTS[fault](training, chooser)
    training.wait_until(lambda: training.first_new_step_s(starts) is not None)
    first_s = training.first_new_step_s(starts)
    assert first_s is not None
    return Recovery(first_s - begin_s, max(reached - training.events(START)[-1].step, 0))


def summary(fault: str, recoveries: list[Recovery]) -> dict[str, Any]:
    """The row of one fault."""
    seconds = [recovery.seconds for recovery in recoveries]
    p50_s, p99_s = np.percentile(seconds, [50, 99])
    return {
        "fault": fault,
        "runs": len(seconds),
        "p50_s": round(float(p50_s), 2),
        "p99_s": round(float(p99_s), 2),
        "steps_lost": float(np.mean([recovery.steps_lost for recovery in recoveries])),
        "seconds": [round(value, 2) for value in seconds],
    }


def steps_in(training: Training, seconds: float, kill_every_s: float | None, chooser: random.Random) -> int:
    """Steps by which training advances in a wall interval, a rank killed every so often within it."""
    first, begin_s = training.step(), time.monotonic()
    kills = 0
    while (passed_s := time.monotonic() - begin_s) < seconds:
        if kill_every_s and passed_s >= (kills + 0.5) * kill_every_s:
            kills += 1
            if training.ranks():
                kill_rank(training, chooser)
        time.sleep(0.1)
    return training.step() - first
