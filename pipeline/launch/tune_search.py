"""A search on Ray Tune: Tune has trials run side by side, and is told which ones by what lies on the disk.

Ray is handed nothing that must be true. What is trained next and what is stopped are functions of the
search's folder (pipeline/search/), called by the two adapters below; a driver that is started again makes a
new Tune run, whose first trials are those that are not over. Tune stops no trial: one that shall end does so
by itself (tune_trial.py), since a trial that Tune kills leaves its nested run's placement group behind.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipeline.config import Config
from pipeline.errors import PipelineError, Preempted, WorldStateError
from pipeline.launch.tune_actor import HALT, NUMBER, PREEMPTED, TASK, TrialActor
from pipeline.launch.tune_folder import Ended, TrialReader, TuneFolder
from pipeline.launch.tune_trial import TrialTask, config_of, task_to_text
from pipeline.launch.workers import Workers
from pipeline.search.agenda import next_order
from pipeline.search.plan import SearchPlan
from pipeline.search.rungs import decide, rungs

logger = logging.getLogger(__name__)

HEAD_SHARE = 0.001
"""Of the driver's node, that a trial's process takes: not a CPU, which its ranks would then lack."""
RESTARTS = 2
"""Of a trial's own driver, after which the trial has failed; its ranks are restarted by that driver."""
LOOK_EVERY_S = 0.2
ASK_EVERY_S = 1.0
"""Between two looks for a trial while there is none: Tune asks ten times a second."""
ENVIRONMENT = {
    # The trials' journals are the record; files of Tune's own beside them would be a second one.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # The folder of a Tune run is removed at its end, and its processes may outlive that.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Its newer reporter frames what it prints, and heeds no verbosity.
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class Search:
    """What the driver of a search needs to know."""

    folder: TuneFolder
    plan: SearchPlan
    config: Config
    """What trials begin from."""
    shards: str
    manifest_id: str
    workers: Workers
    """Of one trial."""
    concurrent: int
    job: str
    """Name of this driver."""


class Conductor:
    """Says what is trained next and what is stopped; called by Tune's thread alone, but for `stop`."""

    def __init__(self, search: Search) -> None:
        self._search, self._plan = search, search.plan
        self._reader = TrialReader(search.folder, search.plan)
        self._begun: set[int] = set()
        self._stop = threading.Event()
        self.halted: PipelineError | None = None
        """Why nothing can go on."""

    def stop(self) -> None:
        """Begin nothing more, and ask those that run to stop after a checkpoint."""
        self._stop.set()
        path = self._search.folder.stop_file(self._search.job)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def next_task(self) -> TrialTask | None:
        """The next trial to be trained; None where there is none, or none yet."""
        trials = self._reader.trials()
        waiting = [trial for trial in trials if not trial.is_over and trial.number not in self._begun]
        if waiting:
            number, settings, seed = waiting[0].number, waiting[0].settings, waiting[0].seed
        else:
            order = next_order(self._plan, self._search.config, trials)
            if order is None:
                return None
            self._search.folder.write_order(order)
            number, settings, seed = order.number, order.settings, order.seed
        self._begun.add(number)
        config = config_of(self._search.config, dict(settings), seed)
        return TrialTask(
            str(self._search.folder.path), number, self._search.job, config,
            self._search.shards, self._search.manifest_id, self._search.workers,
        )  # fmt: skip

    def is_over(self) -> bool:
        """Whether nothing will be begun any more."""
        if self._stop.is_set():
            return True
        trials = self._reader.trials()
        return all(trial.is_over for trial in trials) and not next_order(
            self._plan, self._search.config, trials
        )

    def scored(self, number: int) -> None:
        """Decide on a trial at each rung that it has reached since."""
        trials = self._reader.trials()
        trial = trials[number]
        if number == 0 or trial.repeats is not None:
            return  # all others are held against these
        decisions = self._search.folder.decisions(number)
        decided = {decision.step for decision in decisions}
        scored = {point.step for point in trial.points}
        others = [other for other in trials if other.number != number and other.repeats is None]
        for step in rungs(self._plan):
            if step in scored and step not in decided and all(d.passes for d in decisions):
                decisions.append(decide(self._plan, trial, others, step))
                self._search.folder.write_decisions(number, decisions)

    def lost(self, number: int) -> None:
        """Note a trial that Tune has given up."""
        reason = f"its processes failed again and again; see {self._search.folder.trial_dir(number)}/log"
        self._search.folder.write_ended(number, Ended("failed", 0, reason))

    def halt(self, why: str, *, preempted: bool) -> None:
        """Note that nothing can go on, and stop."""
        self.halted = self.halted or (Preempted(why) if preempted else WorldStateError(why))
        self.stop()


class _Proposals(Searcher):
    """Tune's searcher: asks the conductor."""

    def __init__(self, conductor: Conductor | None = None) -> None:
        super().__init__()
        self._conductor = conductor
        self._numbers: dict[str, int] = {}
        self._ask_at_s = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy, which nobody ever loads

    def suggest(  # type: ignore[override]  # Ray leaves its own FINISHED out
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        """The next trial, none for now, or none ever."""
        assert self._conductor is not None
        if time.monotonic() < self._ask_at_s:
            return None
        if self._conductor.is_over():
            return Searcher.FINISHED
        task = self._conductor.next_task()
        if task is None:
            self._ask_at_s = time.monotonic() + ASK_EVERY_S
            return None
        self._numbers[trial_id] = task.number
        return {NUMBER: task.number, TASK: task_to_text(task)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Hears of a trial that Tune has given up."""
        if error and self._conductor is not None:
            self._conductor.lost(self._numbers[trial_id])

    def save(self, checkpoint_path: str) -> None:
        """Nothing is kept here; Tune moves the file."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was kept here."""


class _Decisions(FIFOScheduler):
    """Tune's scheduler: hands each score to the conductor, and lets every trial end by itself."""

    def __init__(self, conductor: Conductor | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray's own
        self._conductor = conductor

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(self, tune_controller: object, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Decide, where there is something to decide; not called for the last result of a trial."""
        assert self._conductor is not None
        self._conductor.scored(result[NUMBER])
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: object, trial: TuneTrial, result: dict[str, Any]) -> None:
        """Hear why nothing can go on."""
        assert self._conductor is not None
        if result[HALT]:
            self._conductor.halt(result[HALT], preempted=result[PREEMPTED])


def run_search(search: Search, stop_wanted: Callable[[], bool], look: Callable[[], None]) -> None:
    """Runs the search until all that is planned is over; `look` is called several times a second.

    Raises Preempted after a stop, or where there was no room, and what Tune could not go on from.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    conductor = Conductor(search)
    tune_dir = search.folder.path / "log" / "tune"
    shutil.rmtree(tune_dir, ignore_errors=True)  # of a driver that was killed
    running = _Running(_tuner(search, conductor, tune_dir))
    asked = False
    try:
        while not running.wait(LOOK_EVERY_S):
            if stop_wanted() and not asked:
                logger.info("[event] asked to stop: all trials checkpoint at the end of their step")
                conductor.stop()
                asked = True
            look()
    finally:
        shutil.rmtree(tune_dir, ignore_errors=True)
        search.folder.stop_file(search.job).unlink(missing_ok=True)
    running.raise_error()
    look()
    if conductor.halted:
        raise conductor.halted
    if asked:
        name = search.folder.path.name
        raise Preempted(f"the search was stopped; type the same with --name {name} to go on")


def _tuner(search: Search, conductor: Conductor, tune_dir: Path) -> tune.Tuner:
    here = f"node:{ray.util.get_node_ip_address()}"  # type: ignore[no-untyped-call]  # Ray's own
    return tune.Tuner(
        tune.with_resources(TrialActor, {here: HEAD_SHARE}),
        tune_config=tune.TuneConfig(
            num_samples=-1,  # the searcher says when there are no more
            search_alg=_Proposals(conductor),
            scheduler=_Decisions(conductor),
            max_concurrent_trials=search.concurrent,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=search.job,
            storage_path=str(tune_dir),
            failure_config=tune.FailureConfig(max_failures=RESTARTS),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a trial has its own
            verbose=0,
        ),
    )


class _Running:
    """`tuner.fit()` in a thread that dies with the process: in the main one it would take SIGINT."""

    def __init__(self, tuner: tune.Tuner) -> None:
        self._error: BaseException | None = None
        self._tuner = tuner
        self._thread = threading.Thread(target=self._run, name="ray-tune", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._tuner.fit()
        except BaseException as error:  # noqa: BLE001 - raised again in the main thread
            self._error = error

    def wait(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error
