"""What is trained next and what is stopped in a search: asked by whoever runs its trials, told by its folder.

Nothing is remembered here but which trials this driver has begun, so another one goes on where it was.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from pipeline.config import Config
from pipeline.errors import PipelineError, Preempted, WorldStateError
from pipeline.launch.tune_folder import Ended, TrialReader, TuneFolder
from pipeline.launch.tune_trial import TrialTask, config_of
from pipeline.launch.workers import Workers
from pipeline.search.agenda import is_complete, next_order
from pipeline.search.plan import SearchPlan
from pipeline.search.rungs import decide, rungs


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
    """Says what is trained next and what is stopped; called by one thread alone, but for `stop`."""

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
        return is_complete(self._plan, self._search.config, self._reader.trials())

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
        """Note a trial that was given up; one that has ended before, by its own word, has."""
        if self._search.folder.ended(number):
            return
        reason = f"its processes failed again and again; see {self._search.folder.trial_dir(number)}/log"
        self._search.folder.write_ended(number, Ended("failed", 0, reason))

    def halt(self, why: str, *, preempted: bool) -> None:
        """Note that nothing can go on, and stop."""
        self.halted = self.halted or (Preempted(why) if preempted else WorldStateError(why))
        self.stop()
