"""The folder of a search: plan, trials and what was decided of them, in files that are whole or absent.

`<runs>/<search>/` has search.json, and `trials/000/` and so on: the folder of each trial's run, with three
files beside the run's own: trial.json (what it is given) and decisions.json (what the scheduler said) are
written by the search's driver, ended.json by the trial's. All else follows from the trials' journals. So
nothing is lost with a driver, and two processes never write one file.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import WorldStateError, one_line
from pipeline.launch.run_folder import write_json
from pipeline.search.agenda import Order
from pipeline.search.plan import SearchPlan
from pipeline.search.records import Point, SearchRecord, Trial, TrialState
from pipeline.search.rungs import Decision, reason, rungs
from pipeline.tracking.journal import START, Event, Metrics, Record, read_attempts, read_journal

PLAN = "search.json"
OUTCOME = "outcome.json"
"""What the RESULT had of a search that came to its end."""
ORDER = "trial.json"
DECISIONS = "decisions.json"
ENDED = "ended.json"
SESSIONS = "sessions"
"""Folder of a trial with a file for each of its drivers, begun when the file was made and ended when its
content was written."""


@dataclass(frozen=True)
class Ended:
    """How a trial ended, as its driver wrote it."""

    state: TrialState
    step: int
    reason: str = ""


@dataclass(frozen=True)
class TuneFolder:
    """The folder of a search; the methods raise WorldStateError where the disk refuses."""

    path: Path

    @property
    def trials_dir(self) -> Path:
        """Where the trials' runs lie."""
        return self.path / "trials"

    def trial_dir(self, number: int) -> Path:
        """The run's folder of a trial."""
        return self.trials_dir / f"{number:03d}"

    def stop_file(self, job: str) -> Path:
        """The file whose existence asks all trials of one driver to stop after a checkpoint."""
        return self.path / "log" / f"stop-{job}"

    def write_order(self, order: Order) -> None:
        """Note a trial, which is there from then on."""
        folder = self.trial_dir(order.number)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / ORDER, dataclasses.asdict(order))

    def orders(self) -> list[Order]:
        """All trials that there are, by their numbers, which have no gap."""
        found: list[Order] = []
        while True:
            path = self.trial_dir(len(found)) / ORDER
            with _clear_reading(path):
                content = _read(path)
                if content is None:
                    return found
                found.append(Order(**content))

    def write_decisions(self, number: int, decisions: Sequence[Decision]) -> None:
        """Note what was said of a trial so far; the last one may have stopped it."""
        content = {"decisions": [dataclasses.asdict(decision) for decision in decisions]}
        write_json(self.trial_dir(number) / DECISIONS, content)

    def decisions(self, number: int) -> list[Decision]:
        """What was said of a trial so far."""
        path = self.trial_dir(number) / DECISIONS
        with _clear_reading(path):
            content = _read(path) or {"decisions": []}
            return [Decision(**decision) for decision in content["decisions"]]

    def write_ended(self, number: int, ended: Ended) -> None:
        """Note that a trial is over."""
        write_json(self.trial_dir(number) / ENDED, dataclasses.asdict(ended))

    def ended(self, number: int) -> Ended | None:
        """How a trial ended; None while it did not."""
        path = self.trial_dir(number) / ENDED
        with _clear_reading(path):
            content = _read(path)
            return None if content is None else Ended(**content)

    def stop_decided(self, number: int) -> bool:
        """Whether the scheduler stopped a trial."""
        decisions = self.decisions(number)
        return bool(decisions) and not decisions[-1].passes

    def outcome(self) -> dict[str, Any] | None:
        """What the RESULT had when so many trials were at their end; None where they never were."""
        return _read(self.path / OUTCOME)


class TrialReader:
    """The trials of a search as they are now; what is over is read once."""

    def __init__(self, folder: TuneFolder, plan: SearchPlan) -> None:
        self._folder, self._plan = folder, plan
        self._over: dict[int, Trial] = {}

    def trials(self) -> tuple[Trial, ...]:
        """All trials, by their numbers."""
        return tuple(self._over.get(order.number) or self._read(order) for order in self._folder.orders())

    def trial(self, number: int) -> Trial:
        """One trial."""
        return self.trials()[number]

    def record(self, name: str, facts: Mapping[str, Any]) -> SearchRecord:
        """The search as it is now."""
        plan = self._plan
        return SearchRecord(
            name, plan.metric, plan.mode, plan.space, plan.defaults, self.trials(),
            num_trials=plan.num_trials, budget_steps=plan.budget_steps, rungs=rungs(plan),
            algorithm=plan.algorithm, scheduler=plan.scheduler, seed=plan.seed, held_out=plan.held_out,
            facts=facts,
        )  # fmt: skip

    def _read(self, order: Order) -> Trial:
        ended = self._folder.ended(order.number)  # first: what is read after it is all that there will be
        run_dir = self._folder.trial_dir(order.number)
        decisions = self._folder.decisions(order.number)
        records, attempts = read_journal(run_dir), [found for _, found in read_attempts(run_dir)]
        trial = Trial(
            order.number, order.name, order.settings,
            state=ended.state if ended else "running",
            points=scores(records, self._plan.metric),
            rungs=tuple(decision.step for decision in decisions),
            budget_steps=self._plan.budget_steps,
            step=max(ended.step if ended else 0, newest_step(records)),
            train_s=train_seconds(attempts),
            whole_s=whole_seconds(run_dir, attempts),
            reason=self._reason(ended, decisions),
            seed=order.seed, repeats=order.repeats,
            run_dir=str(run_dir.relative_to(self._folder.path)),
        )  # fmt: skip
        if trial.is_over:
            self._over[order.number] = trial
        return trial

    def _reason(self, ended: Ended | None, decisions: Sequence[Decision]) -> str:
        if ended and (ended.reason or ended.state == "done"):  # it may end before it hears
            return ended.reason
        return reason(self._plan, decisions[-1]) if decisions and not decisions[-1].passes else ""


def scores(records: Sequence[Record], metric: str) -> tuple[Point, ...]:
    """The scores that count, by their steps."""
    found = {r.step: r.values[metric] for r in records if isinstance(r, Metrics) and metric in r.values}
    return tuple(Point(step, found[step]) for step in sorted(found))


def newest_step(records: Sequence[Record]) -> int:
    """The last step that was recorded and counts."""
    return max((record.step for record in records if isinstance(record, Metrics)), default=0)


def train_seconds(attempts: Sequence[Sequence[Record]]) -> float:
    """Seconds of all attempts, each from its start, once all is loaded, to its last record."""
    total_s = 0.0
    for records in attempts:
        started = [record for record in records if isinstance(record, Event) and record.name == START]
        if started:
            total_s += records[-1].time_s - started[0].time_s
    return total_s


def whole_seconds(run_dir: Path, attempts: Sequence[Sequence[Record]]) -> float:
    """Seconds of all sessions of a trial's drivers; one that was killed counts to its last record."""
    total_s = 0.0
    newest_s = max((record.time_s for records in attempts for record in records), default=0.0)
    for path in sorted((run_dir / SESSIONS).glob("*.json")):
        content = _read(path)
        if content:
            end_s = content.get("end_s", max(newest_s, content["begin_s"]))
            total_s += end_s - content["begin_s"]
    return total_s


def _read(path: Path) -> dict[str, Any] | None:
    """A file's content; None where it is not there. Raises WorldStateError for anything else."""
    with _clear_reading(path):
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None


@contextmanager
def _clear_reading(path: Path) -> Iterator[None]:
    """Raises WorldStateError, naming the file, for one that is damaged or of another version."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorldStateError(f"{path} cannot be read ({one_line(error)}); choose another --name") from error
