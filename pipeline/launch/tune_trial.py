"""One trial of a search: a run like any other, that its search may end before its budget.

It has its own lease, attempts, checkpoints and journal, so whatever is killed, it goes on from its own newest
checkpoint by the guarantees that every run has. Its driver lives in a process of Ray Tune's without a CPU;
its ranks are those of Ray Train. It is ended from within: a decision to stop reaches it as a file, its ranks
checkpoint, and only when they are gone is Tune told, which then has nothing left to leak.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.errors import PipelineError, Preempted, WorldStateError, one_line
from pipeline.launch.ray_attempt import Launch
from pipeline.launch.ray_train import train_on_ray
from pipeline.launch.run_context import log_to_file
from pipeline.launch.run_folder import identity, lease, refuse_other_run, write_json
from pipeline.launch.spares import Spares
from pipeline.launch.tune_folder import SESSIONS, Ended, TuneFolder
from pipeline.launch.workers import Workers
from pipeline.launch.world_size import WorldRange
from pipeline.settings import from_dict, to_dict, with_settings
from pipeline.tracking.journal import committed_step, read_journal
from pipeline.train.retention import remove, superfluous

logger = logging.getLogger(__name__)

LEASE_WAIT_S = 30.0
"""Longest wait for the driver of this trial that was killed to be gone, with its lock."""
LOG = "trial.log"
SEED = "train.seed"


@dataclass(frozen=True)
class TrialTask:
    """What the driver of a trial needs to know."""

    search_dir: str
    number: int
    job: str
    """Name of the search's driver, whose wish to stop it hears."""
    config: Config
    """Of the trial: settings and seed are in it."""
    shards: str
    manifest_id: str
    workers: Workers

    @property
    def folder(self) -> TuneFolder:
        """The folder of the search."""
        return TuneFolder(Path(self.search_dir))

    @property
    def run_dir(self) -> Path:
        """The folder of the trial's run."""
        return self.folder.trial_dir(self.number)


def task_to_text(task: TrialTask) -> str:
    """The task as JSON."""
    return json.dumps(vars(task) | {"config": to_dict(task.config), "workers": vars(task.workers)})


def task_from_text(text: str) -> TrialTask:
    """The task that `task_to_text` wrote."""
    content = json.loads(text)
    return TrialTask(
        **content | {"config": from_dict(content["config"]), "workers": Workers(**content["workers"])}
    )


def config_of(base: Config, settings: dict[str, Any], seed: int) -> Config:
    """The config of a trial: the search's, with its settings and seed."""
    return with_settings(base, dict(settings) | {SEED: seed})


class TrialStop:
    """The wish that a trial ends: the scheduler's, that of the whole search, or that of its process."""

    def __init__(self, task: TrialTask) -> None:
        self._folder, self._number = task.folder, task.number
        self._stop_file = task.folder.stop_file(task.job)
        self._asked = False

    def ask(self) -> None:
        """Ask the trial to stop."""
        self._asked = True

    def stop_wanted(self) -> bool:
        """True once a stop was asked for."""
        return self._asked or self._stop_file.exists() or self.is_decided()

    def is_decided(self) -> bool:
        """Whether the scheduler stopped the trial: then it is over, and not only interrupted."""
        return self._folder.stop_decided(self._number)


def train_trial(task: TrialTask, stop: TrialStop, spares: Spares | None) -> Ended | None:
    """Trains a trial to its end, and notes how it ended; None where it was interrupted, and is to go on.

    `spares` are the processes that the trial before it left in reserve.

    Raises Preempted where the cluster has no room for it, and whatever Ray says of a failure that
    outlived all restarts; what ends a training by itself, such as a loss that is not finite, fails the trial.
    """
    earlier = task.folder.ended(task.number)
    if earlier:
        return earlier
    with ExitStack() as stack:
        stack.enter_context(_lease_in_time(task.run_dir))
        stack.enter_context(_session(task))
        log_to_file(task.run_dir / "log" / LOG)
        recorded = identity(task.config, {"manifest_id": task.manifest_id})
        refuse_other_run(task.run_dir, recorded)
        write_json(task.run_dir / "config.json", recorded)
        ended = _ended_before(stop) if stop.stop_wanted() else _trained(task, stop, spares)
        if ended:
            task.folder.write_ended(task.number, ended)
            with suppress(OSError):  # what stays costs room alone
                for checkpoint in superfluous(task.run_dir, keep_last=0):
                    remove(checkpoint)
        return ended


def _ended_before(stop: TrialStop) -> Ended | None:
    """How a trial ends that is to stop before it has begun."""
    return Ended("stopped", 0) if stop.is_decided() else None


def _trained(task: TrialTask, stop: TrialStop, spares: Spares | None) -> Ended | None:
    workers = task.workers
    launch = Launch(task.config, task.shards, task.run_dir, workers, WorldRange(workers.num, workers.num))
    try:
        fit = train_on_ray(launch, stop, spares).fit
    except Preempted:
        if not stop.stop_wanted():
            raise
        step = committed_step(read_journal(task.run_dir))
        return Ended("stopped", step) if stop.is_decided() else None
    except WorldStateError:
        raise  # not the doing of its settings: full disks, a newer attempt
    except PipelineError as error:
        return Ended("failed", 0, one_line(error))
    if fit["status"] == "ok":
        return Ended("done", fit["step"])
    return Ended("stopped", fit["step"]) if stop.is_decided() else None


@contextmanager
def _lease_in_time(run_dir: Path) -> Iterator[None]:
    """The lease of the run, waited for: Ray starts a trial anew before the process that it lost is gone."""
    give_up_s = time.monotonic() + LEASE_WAIT_S
    while True:
        with ExitStack() as stack:
            try:
                stack.enter_context(lease(run_dir))
            except WorldStateError:
                if time.monotonic() > give_up_s:
                    raise
            else:
                yield
                return
        time.sleep(0.2)


@contextmanager
def _session(task: TrialTask) -> Iterator[None]:
    """Note when a driver of the trial begins and ends."""
    folder = task.run_dir / SESSIONS
    folder.mkdir(exist_ok=True)
    path = folder / f"{len(list(folder.iterdir())):03d}.json"
    begin_s = time.time()
    write_json(path, {"begin_s": begin_s})  # the search reads it at any time
    try:
        yield
    finally:
        write_json(path, {"begin_s": begin_s, "end_s": time.time()})
