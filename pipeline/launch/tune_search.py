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
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipeline.errors import Preempted
from pipeline.launch.tune_actor import HALT, NUMBER, PREEMPTED, TASK, TrialActor
from pipeline.launch.tune_conductor import Conductor, Search
from pipeline.launch.tune_trial import task_to_text

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
    # It looks for the files that there are none of, and says so for each trial.
    logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)
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
