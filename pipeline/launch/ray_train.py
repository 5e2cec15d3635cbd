"""A thin shell around `fit()`: attempts on Ray Train, one after the other until one ends the training.

Ray is handed nothing that must be true. It keeps no checkpoint and counts no failure: each attempt
resumes from the newest COMMIT in the run's folder. So the death of a rank, of a node and of Ray's own
controller, and a rank that hangs, are one and the same case.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import secrets
import shutil
from contextlib import ExitStack
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
    stopped_by,
)
from pipeline.launch.driver_journal import driver_journal
from pipeline.launch.fence import begin_attempt
from pipeline.launch.ray_attempt import Launch, run_attempt
from pipeline.launch.room import wait_for_room
from pipeline.launch.spares import Spares
from pipeline.launch.staging import stage_on_nodes
from pipeline.launch.stop_signals import StopWish

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """The FitResult of the attempt that ended the training, as plain values, and the restarts before it."""

    fit: dict[str, Any]
    restarts: int


def train_on_ray(launch: Launch, signals: StopWish, spares: Spares | None = None) -> Trained:
    """Trains to the end, or to a stop that was asked for, over as many attempts as the config allows.

    `spares` are those of an earlier training of this process, whose processes may be taken.
    Raises the PipelineError of a worker as it was raised there, and whatever Ray says of a failure
    that outlived all restarts; PipelineError where ranks hung again and again; Preempted where there is no
    room, and where ranks were lost after a stop was asked for.
    """
    stage_on_nodes(launch.config, launch.shards, launch.run_dir, launch.workers, signals)
    if spares is None and launch.config.launch.spares:
        spares = Spares()
    job = secrets.token_hex(3)
    failure: Failure | None = None
    failures = 0
    with driver_journal(launch.run_dir, job) as journal, ExitStack() as stack:
        stack.callback(shutil.rmtree, launch.run_dir / "log" / "ray", ignore_errors=True)
        for restarts in itertools.count():
            begun = partial(note_restart, launch.run_dir, journal, failure)
            launch = in_room(launch, signals)
            remote = launch.remote
            attempt = remote.begin_attempt(job) if remote else begin_attempt(launch.run_dir, job)
            try:
                fit_result = run_attempt(launch, attempt, signals, spares, begun)
            except LostError as lost:
                raise_if_it_would_repeat(lost)
                failure = note_failure(launch.run_dir, journal, attempt, lost, failure)
                if signals.stop_wanted():  # as where a machine is taken away with all that is on it
                    raise stopped_by(failure, launch.run_dir.name) from lost
                if failures == launch.config.launch.max_failures:
                    give_up(lost)
                failures += 1
                continue
            if fit_result["status"] != "preempted" or signals.stop_wanted():
                return Trained(fit_result, restarts)
            # Announced, and nothing lost by it: it counts as an incident and not as a failure.
            told = LostError("a rank was preempted", "step", 0.0)
            failure = note_failure(launch.run_dir, journal, attempt, told, failure)
    raise AssertionError("the last attempt returns or raises")


def in_room(launch: Launch, signals: StopWish) -> Launch:
    """The launch with as many workers as there is room for now, and with their share of each batch."""
    size = wait_for_room(launch.config, launch.world, launch.workers, signals.stop_wanted)
    if size != launch.workers.num:
        logger.info("[event] room for %d workers, before %d", size, launch.workers.num)
    return dataclasses.replace(launch, workers=dataclasses.replace(launch.workers, num=size))
