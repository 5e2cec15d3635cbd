"""A thin shell around `fit()`: attempts on Ray Train, one after the other until one ends the training.

Ray is handed nothing that must be true. It keeps no checkpoint and counts no failure: each attempt
resumes from the newest COMMIT in the run's folder. So the death of a rank, of a node and of Ray's own
controller, and a rank that hangs, are one and the same case.
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.launch.attempt_failure import (
    Failure,
    LostError,
    give_up,
    note_failure,
    note_restart,
    raise_if_it_would_repeat,
)
from pipeline.launch.fence import begin_attempt
from pipeline.launch.ray_attempt import Launch, run_attempt
from pipeline.launch.spares import Spares
from pipeline.launch.staging import stage_on_nodes
from pipeline.launch.stop_signals import StopSignals
from pipeline.tracking.incidents import DRIVER
from pipeline.tracking.journal import Journal


@dataclass(frozen=True)
class Trained:
    """The FitResult of the attempt that ended the training, as plain values, and the restarts before it."""

    fit: dict[str, Any]
    restarts: int


def train_on_ray(launch: Launch, signals: StopSignals) -> Trained:
    """Trains to the end, or to a stop that was asked for, over as many attempts as the config allows.

    Raises the PipelineError of a worker as it was raised there, and whatever Ray says of a failure
    that outlived all restarts; PipelineError where ranks hung again and again.
    """
    stage_on_nodes(launch.config, launch.shards, launch.run_dir, launch.workers, signals)
    spares = Spares() if launch.config.launch.spares else None
    job = secrets.token_hex(3)
    journal = Journal(launch.run_dir, f"{DRIVER}{job}")
    try:
        failure: Failure | None = None
        for restarts in range(launch.config.launch.max_failures + 1):
            begun = partial(note_restart, launch.run_dir, journal, failure)
            try:
                attempt = begin_attempt(launch.run_dir, job)
                return Trained(run_attempt(launch, attempt, signals, spares, begun), restarts)
            except LostError as lost:
                raise_if_it_would_repeat(lost)
                failure = note_failure(launch.run_dir, journal, lost, failure)
                if restarts == launch.config.launch.max_failures or signals.stop_wanted():
                    give_up(lost)
    finally:
        journal.close()
        shutil.rmtree(launch.run_dir / "log" / "ray", ignore_errors=True)
    raise AssertionError("the last attempt returns or raises")
