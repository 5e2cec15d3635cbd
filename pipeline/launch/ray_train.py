"""A thin shell around `fit()`: a worker group by Ray Train, started again when a rank is lost.

Ray is handed nothing that must be true. It keeps no checkpoint and counts no failure: each attempt
is a Ray Train run of its own with a fresh name, and resumes from the newest COMMIT in the run's
folder. So the death of a rank, of a node and of Ray's own controller are one and the same case.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.exceptions import RayError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.launch.log_follower import LogFollower
from pipeline.launch.rank_signals import HearingTorchConfig, told_to_go
from pipeline.launch.room import wait_for_room
from pipeline.launch.run_context import JournaledContext, log_file, log_to_file, request_stop
from pipeline.launch.staging import stage_on_nodes
from pipeline.launch.stop_signals import StopSignals
from pipeline.launch.workers import Workers
from pipeline.launch.world_size import WorldRange, at_world_size
from pipeline.settings import from_dict, to_dict, with_settings
from pipeline.tracking.journal import START, Event, Journal, Metrics, Record, committed_step, read_journal
from pipeline.train.loop import fit
from pipeline.world import World

logger = logging.getLogger(__name__)

BUGS = (
    AssertionError,
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    TypeError,
    ValueError,
)
"""Exceptions of a worker that another attempt would only repeat; all others may be a lost rank's
doing: Ray's own errors, and the RuntimeError of a collective whose peer is gone."""

START_WAIT_S = 5.0
"""Longest from a new attempt's first line to its start in the journal."""


@dataclasses.dataclass(frozen=True)
class Launch:
    """What an attempt needs to know."""

    config: Config
    shards: str
    run_dir: Path
    workers: Workers
    world: WorldRange
    tracking: str = ""


@dataclasses.dataclass(frozen=True)
class Trained:
    """The FitResult of the attempt that ended the training, as plain values, and the restarts before it."""

    fit: dict[str, Any]
    restarts: int


@dataclasses.dataclass(frozen=True)
class Failure:
    """An attempt that ended too early: what was lost, the last step recorded, the starts until then."""

    lost: str
    reached: int
    starts: int
    noticed_s: float


def train_on_ray(launch: Launch, signals: StopSignals) -> Trained:
    """Trains to the end, or to a stop that was asked for, over as many attempts as the config allows.

    Raises the PipelineError of a worker as it was raised there, and whatever Ray says of a failure
    that outlived all restarts.
    """
    stage_on_nodes(launch.config, launch.shards, launch.run_dir, launch.workers, signals)
    token = secrets.token_hex(3)
    journal = Journal(launch.run_dir, f"driver-{token}")
    failure: Failure | None = None
    failures = 0
    try:
        for restarts in itertools.count():
            begun = partial(_note_restart, launch.run_dir, journal, failure)
            launch = in_room(launch, signals)
            try:
                fit_result = _attempt(launch, f"{token}{restarts}", signals, begun)
            except (RayError, TrainingFailedError) as error:
                last = failures == launch.config.launch.max_failures or signals.stop_wanted()
                _raise_unless_retryable(error, last=last)
                failures += 1
                failure = _note_failure(launch.run_dir, journal, _describe(error))
                continue
            if fit_result["status"] != "preempted" or signals.stop_wanted():
                return Trained(fit_result, restarts)
            failure = _note_failure(launch.run_dir, journal, "a rank was preempted")  # announced: no failure
    finally:
        journal.close()
        shutil.rmtree(launch.run_dir / "log" / "ray", ignore_errors=True)
    raise AssertionError("the last attempt returns or raises")


def in_room(launch: Launch, signals: StopSignals) -> Launch:
    """The launch with as many workers as there is room for now, and with their share of each batch."""
    size = wait_for_room(launch.config, launch.world, launch.workers, signals.stop_wanted)
    if size != launch.workers.num:
        logger.info("[event] room for %d workers, before %d", size, launch.workers.num)
    return dataclasses.replace(launch, workers=dataclasses.replace(launch.workers, num=size))


def _attempt(launch: Launch, attempt: str, signals: StopSignals, begun: Callable[[], None]) -> dict[str, Any]:
    """The FitResult of one worker group, its log lines shown as they come, `begun` called at the first."""
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"launch": _portable(launch), "attempt": attempt},
        torch_config=HearingTorchConfig(
            backend="nccl" if launch.workers.use_gpu else "gloo",
            timeout_s=launch.config.launch.collective_timeout_s,
        ),
        scaling_config=ScalingConfig(
            num_workers=launch.workers.num,
            use_gpu=launch.workers.use_gpu,
            resources_per_worker={"CPU": launch.workers.cpus_each}
            | ({"GPU": 1} if launch.workers.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=attempt,
            storage_path=str(launch.run_dir / "log" / "ray"),
            failure_config=FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=0
            ),
            worker_runtime_env={
                "env_vars": {"OMP_NUM_THREADS": str(launch.config.launch.threads_per_worker)}
            },
        ),
    )
    with LogFollower(log_file(launch.run_dir, attempt), begun):
        # In a thread of its own: in the main one Ray would take SIGINT and end without a checkpoint.
        outcome = _Outcome(trainer)
        asked = False
        while not outcome.wait(0.1):
            if signals.stop_wanted() and not asked:
                logger.info("[event] asked to stop: checkpointing at the end of the step")
                request_stop(launch.run_dir, attempt)
                asked = True
    return outcome.value()


class _Outcome:
    """What `trainer.fit()` gives, from a thread that dies with the process."""

    def __init__(self, trainer: TorchTrainer) -> None:
        self._result: Any = None
        self._error: BaseException | None = None
        self._trainer = trainer
        self._thread = threading.Thread(target=self._run, name="ray-train", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            result: Any = self._trainer.fit()  # Ray annotates its older class
            self._result = result.return_value
        except BaseException as error:  # noqa: BLE001 - raised again by `value` in the main thread
            self._error = error

    def wait(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def value(self) -> dict[str, Any]:
        if self._error is not None:
            raise self._error
        return dict(self._result)


def _portable(launch: Launch) -> dict[str, Any]:
    """The launch as plain values, the GPU question answered: workers must not each decide it anew."""
    answer = {"launch.use_gpu": "yes" if launch.workers.use_gpu else "no"}
    config = at_world_size(launch.config, launch.world, launch.workers.num)
    return {
        "config": to_dict(with_settings(config, answer)),
        "shards": launch.shards,
        "run_dir": str(launch.run_dir),
        "tracking": launch.tracking,
    }


def _worker(settings: dict[str, Any]) -> dict[str, Any]:
    """One rank: `fit()` in surroundings made of Ray Train's context."""
    launch, attempt = settings["launch"], settings["attempt"]
    config, run_dir = from_dict(launch["config"]), Path(launch["run_dir"])
    place = ray.train.get_context()
    world = World(
        rank=place.get_world_rank(),
        size=place.get_world_size(),
        local_rank=place.get_local_rank(),
        local_size=place.get_local_world_size(),
    )
    torch.set_num_threads(config.launch.threads_per_worker)
    log_to_file(log_file(run_dir, attempt) if world.is_main else None)
    context = JournaledContext(run_dir, world, attempt, launch["tracking"], told_to_go)
    try:
        return dataclasses.asdict(fit(config, launch["shards"], run_dir, context))
    finally:
        context.close()


def _failures(error: Exception) -> dict[int, Exception]:
    """Rank → exception, where Ray tells them apart; the error itself under -1 where it does not."""
    if isinstance(error, WorkerGroupError):
        return dict(sorted(error.worker_failures.items()))
    return {-1: error}


def _raise_unless_retryable(error: Exception, *, last: bool) -> None:
    """Raises a worker's PipelineError, a bug, or, when there is no restart left, the failure itself."""
    for failure in _failures(error).values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, PipelineError):
                raise cause from None
            cause = cause.__cause__
    bugs = [f for rank, f in _failures(error).items() if rank >= 0 and isinstance(f, BUGS)]
    if last or bugs:
        raise error


def _describe(error: Exception) -> str:
    """`rank 1 lost`, or what else ended the attempt, short."""
    failures = _failures(error)
    lost = [rank for rank, failure in failures.items() if isinstance(failure, WorkerHealthCheckFailedError)]
    if lost:
        return f"rank {', '.join(str(rank) for rank in lost)} lost"
    rank, failure = next(iter(failures.items()))
    who = "the worker group" if rank < 0 else f"rank {rank}"
    return f"{who} failed ({type(failure).__name__})"


def _note_failure(run_dir: Path, journal: Journal, lost: str) -> Failure:
    """The failure as it is recorded: what was lost, and from which step training goes on."""
    records = read_journal(run_dir)
    resumed = committed_step(records)
    reached = max((r.step for r in records if isinstance(r, Metrics)), default=resumed)
    journal.event("failure", resumed, lost=lost, reached=reached)
    return Failure(lost, max(reached, resumed), len(_starts(records)), time.monotonic())


def _note_restart(run_dir: Path, journal: Journal, failure: Failure | None) -> None:
    """Record that the loop runs again after a failure, and say so; nothing to say without one.

    The step is the one that the workers restored, which is below the newest commit's where that one
    turned out to be damaged.
    """
    if failure is None:
        return
    seconds = time.monotonic() - failure.noticed_s
    give_up_s = time.monotonic() + START_WAIT_S
    records = read_journal(run_dir)
    while len(_starts(records)) <= failure.starts and time.monotonic() < give_up_s:
        time.sleep(0.05)  # the header, which is logged first, comes a moment before the start's record
        records = read_journal(run_dir)
    # A commit that came in between is not what was restored.
    resumed = _starts(records)[-1] if len(_starts(records)) > failure.starts else committed_step(records)
    repeated = max(failure.reached - resumed, 0)
    journal.event("restart", resumed, lost=failure.lost, seconds=seconds, repeated=repeated)
    logger.info(
        "[event] %s → restarted in %.1fs at step %d, %d steps repeated",
        failure.lost, seconds, resumed, repeated,
    )  # fmt: skip


def _starts(records: Sequence[Record]) -> list[int]:
    """The steps at which attempts began, in their order."""
    return [record.step for record in records if isinstance(record, Event) and record.name == START]
