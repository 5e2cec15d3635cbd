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

from ray.exceptions import RayError
from ray.train.v2.api.exceptions import TrainingFailedError

from pipeline.launch.attempt_failure import (
    Failure,
    HungError,
    describe,
    note_failure,
    note_restart,
    raise_unless_retryable,
)
from pipeline.launch.ray_attempt import Launch, run_attempt
from pipeline.launch.staging import stage_on_nodes
from pipeline.launch.stop_signals import StopSignals
from pipeline.tracking.journal import Journal


@dataclass(frozen=True)
class Trained:
    """The FitResult of the attempt that ended the training, as plain values, and the restarts before it."""

    fit: dict[str, Any]
    restarts: int


def train_on_ray(launch: Launch, signals: StopSignals) -> Trained:
    """Trains to the end, or to a stop that was asked for, over as many attempts as the config allows.

    Raises the PipelineError of a worker as it was raised there, and whatever Ray says of a failure
    that outlived all restarts.
    """
    stage_on_nodes(launch.config, launch.shards, launch.run_dir, launch.workers, signals)
    token = secrets.token_hex(3)
    journal = Journal(launch.run_dir, f"driver-{token}")
    try:
        failure: Failure | None = None
        for restarts in range(launch.config.launch.max_failures + 1):
            begun = partial(note_restart, launch.run_dir, journal, failure)
            try:
                return Trained(run_attempt(launch, f"{token}{restarts}", signals, begun), restarts)
            except (RayError, TrainingFailedError, HungError) as error:
                last = restarts == launch.config.launch.max_failures or signals.stop_wanted()
                raise_unless_retryable(error, last=last)
                failure = note_failure(launch.run_dir, journal, describe(error))
    finally:
        journal.close()
        shutil.rmtree(launch.run_dir / "log" / "ray", ignore_errors=True)
    raise AssertionError("the last attempt returns or raises")
