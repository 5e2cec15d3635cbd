"""One attempt of a run: a worker group by Ray Train, watched from its start to its end.

Each attempt is a Ray Train run of its own with a fresh name and no retries. It ends with what rank 0
returned, or with an error; ranks that hang are killed, and so end it like ranks that were lost.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.exceptions import RayError
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.callback import RayTrainCallback
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from pipeline.config import Config
from pipeline.launch.attempt_failure import lost_by
from pipeline.launch.drains import DrainWatch
from pipeline.launch.log_follower import LogFollower
from pipeline.launch.pulse import Pulse, beat_file
from pipeline.launch.rank_signals import HearingTorchConfig, told_to_go
from pipeline.launch.rank_watch import RankWatch, end_ranks, free_resources, this_place
from pipeline.launch.remote_run import RemoteRun, shipped_to
from pipeline.launch.run_context import JournaledContext, clear_errors, log_file, log_to_file, request_stop
from pipeline.launch.spares import Spares
from pipeline.launch.stall import Stall
from pipeline.launch.stop_signals import StopWish
from pipeline.launch.workers import Workers
from pipeline.launch.world_size import WorldRange, at_world_size
from pipeline.settings import from_dict, to_dict, with_settings
from pipeline.train.loop import fit
from pipeline.world import World

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.2


@dataclasses.dataclass(frozen=True)
class Launch:
    """What an attempt needs to know."""

    config: Config
    shards: str
    run_dir: Path
    workers: Workers
    world: WorldRange
    tracking: str = ""
    remote: RemoteRun | None = None
    """The run at the address where it is kept, held by this process; `run_dir` is its working copy."""


def run_attempt(
    launch: Launch, attempt: str, signals: StopWish, spares: Spares | None, begun: Callable[[], None]
) -> dict[str, Any]:
    """The FitResult of one worker group, its log lines shown as they come, `begun` called at the first.

    Raises LostError where it ended too early.
    """
    with clear_errors(log_file(launch.run_dir, attempt).parent):
        watch = RankWatch(launch.run_dir, attempt, launch.workers.num, launch.config.launch.deadline)
    hung: Stall | None = None
    with LogFollower(log_file(launch.run_dir, attempt), begun):
        # In a thread of its own: in the main one Ray would take SIGINT and end without a checkpoint.
        outcome = _Outcome(_trainer(launch, attempt))
        drains = DrainWatch()
        asked = ordered = False
        while not outcome.wait(LOOK_EVERY_S):
            if not asked and _must_stop(signals, drains, watch):
                request_stop(launch.run_dir, attempt)
                asked = True
            if hung is None and (hung := watch.look()):
                end_ranks(watch.places())
            if spares and not ordered and watch.settled():
                spares.fill(watch.places())
                ordered = True
    try:
        return outcome.value()
    except (RayError, TrainingFailedError) as error:
        free_resources(watch.places())
        raise lost_by(error, hung, watch.seen()) from error
    finally:
        if spares:
            spares.pause()


def _must_stop(signals: StopWish, drains: DrainWatch, watch: RankWatch) -> bool:
    """Whether the ranks shall stop after a checkpoint, said once it is so."""
    if signals.stop_wanted():
        logger.info("[event] asked to stop: checkpointing at the end of the step")
        return True
    return drains.seen(place.node for place in watch.places())


class _Trainer(TorchTrainer):
    """Ray Train without two helpers that delay a start by processes of their own.

    Nothing here reads Ray Data, and what a controller that dies leaves is freed by the driver.
    """

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        needless = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [made for made in super()._create_default_callbacks() if not isinstance(made, needless)]


def _trainer(launch: Launch, attempt: str) -> _Trainer:
    return _Trainer(
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
        ),
    )


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
        "address": launch.remote.address if launch.remote else "",
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
    with clear_errors(log_file(run_dir, attempt).parent):
        log_to_file(log_file(run_dir, attempt) if world.is_main else None)
        pulse = Pulse(beat_file(run_dir, attempt, world.rank), this_place())
    address = launch["address"] if world.is_main else ""
    with shipped_to(address, run_dir, attempt, config) as saved:
        context = JournaledContext(run_dir, world, attempt, launch["tracking"], told_to_go, pulse, saved)
        try:
            return dataclasses.asdict(fit(config, launch["shards"], run_dir, context))
        finally:
            context.close()
