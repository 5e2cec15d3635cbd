"""What a search is and what became of it, as plain data: the one form that all that shows a search reads.

It is made from the search's folder (what was decided) and the journals of its trials (what was scored), so
nothing here is written by two processes. JSON of it is what reports and benchmarks keep.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Value = str | int | float | bool
"""A value of a setting."""
Settings = Mapping[str, Value]
"""Dotted name → value."""
TrialState = Literal["running", "done", "stopped", "failed"]
"""`running` until it is known to have ended, `done` at the end of its budget, `stopped` by the scheduler."""
Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Dimension:
    """A setting that is searched: values to choose from, a range, or both (0, or 0.001 to 3)."""

    name: str
    """Dotted name of the setting."""
    values: tuple[Value, ...] = ()
    """What can be chosen, beside the range where there is one."""
    low: float | None = None
    """Lower end of the range; None without one."""
    high: float | None = None
    """Upper end of the range."""
    log: bool = False
    """Whether the range is even in its logarithm."""
    whole: bool = False
    """Whether the range has whole numbers alone."""

    @property
    def has_range(self) -> bool:
        """True where a number is drawn, and not only values are chosen from."""
        return self.low is not None

    @property
    def size(self) -> int | None:
        """How many values it has; None where that has no end."""
        if self.low is None or self.high is None:
            return len(self.values)
        return len(self.values) + int(self.high) - int(self.low) + 1 if self.whole else None

    def all_values(self) -> Iterator[Value]:
        """Each of them, where there is an end."""
        assert self.size is not None, self
        yield from self.values
        if self.low is not None and self.high is not None:
            yield from range(int(self.low), int(self.high) + 1)

    def has(self, value: Value) -> bool:
        """Whether it is one of the values, or in the range."""
        if value in self.values or self.low is None or self.high is None:
            return value in self.values
        return not isinstance(value, str) and self.low <= value <= self.high


@dataclass(frozen=True)
class Point:
    """A score of a trial at an optimizer step."""

    step: int
    score: float


@dataclass(frozen=True)
class Trial:
    """One setting of the space, trained in a run of its own."""

    number: int
    """From 0 on, which is the trial of the defaults."""
    name: str
    """What varies, in words: `defaults`, `tau 12.1 · lambda_inter 0`."""
    settings: Settings
    """What it was given of the space; a setting that the others leave idle is not there."""
    state: TrialState = "running"
    points: tuple[Point, ...] = ()
    """Its scores, in the order of steps."""
    rungs: tuple[int, ...] = ()
    """Steps at which it was compared with the others, and passed or was stopped at the last of them."""
    budget_steps: int = 0
    """Steps of a full training."""
    step: int = 0
    """Steps that it did, as far as its journal tells."""
    train_s: float = 0.0
    """Seconds in training, evaluations and checkpoints included, over all attempts."""
    whole_s: float = 0.0
    """Seconds from its start to its end, over all attempts: the rest is what it costs beside training."""
    reason: str = ""
    """Why it was stopped or failed."""
    seed: int = 0
    """Its `train.seed`."""
    repeats: int | None = None
    """Number of the trial whose settings it repeats with another seed."""
    run_dir: str = ""
    """Its run's folder, below that of the search."""
    run_id: str = ""
    """Its run in MLflow; empty where nobody tracks it."""

    @property
    def best(self) -> float | None:
        """Its last score: what it is ranked by; None before the first."""
        return self.points[-1].score if self.points else None

    @property
    def is_over(self) -> bool:
        """True once nothing more will come of it."""
        return self.state != "running"


@dataclass(frozen=True)
class SearchRecord:
    """A search, as it is now."""

    name: str
    metric: str
    """Name of the score, such as `val/miou`."""
    mode: Mode
    space: tuple[Dimension, ...]
    defaults: Settings
    """What the settings of the space are in the config that the search began with."""
    trials: tuple[Trial, ...] = ()
    """By their numbers."""
    num_trials: int = 0
    """How many are wanted, repeats left out."""
    budget_steps: int = 0
    """Steps of a full training of one trial."""
    rungs: tuple[int, ...] = ()
    """Steps at which the scheduler decides."""
    algorithm: str = "tpe"
    scheduler: str = "asha"
    seed: int = 0
    """Seed of the proposals."""
    held_out: tuple[str, ...] = ()
    """Drives of the training data that no trial trained on, and that all are scored on."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else a reader may want: recipe, shards, commit, where MLflow is."""

    def searched(self) -> tuple[Trial, ...]:
        """The trials that are no repeats."""
        return tuple(trial for trial in self.trials if trial.repeats is None)

    def repeats_of(self, number: int) -> tuple[Trial, ...]:
        """The trials that repeat one with other seeds, that one itself left out."""
        return tuple(trial for trial in self.trials if trial.repeats == number)


def to_json(record: SearchRecord) -> dict[str, Any]:
    """The record as plain values, ready for JSON."""
    return dataclasses.asdict(record)


def from_json(content: Mapping[str, Any]) -> SearchRecord:
    """The record that `to_json` wrote; raises TypeError or KeyError for anything else."""
    fields = dict(content)
    fields["space"] = tuple(dimension_from_json(dimension) for dimension in content["space"])
    fields["trials"] = tuple(trial_from_json(trial) for trial in content["trials"])
    return SearchRecord(**_tuples(fields, "rungs", "held_out"))


def dimension_from_json(content: Mapping[str, Any]) -> Dimension:
    """A dimension of plain values."""
    return Dimension(**_tuples(dict(content), "values"))


def trial_from_json(content: Mapping[str, Any]) -> Trial:
    """A trial of plain values."""
    fields = dict(content)
    fields["points"] = tuple(Point(int(p["step"]), float(p["score"])) for p in content["points"])
    return Trial(**_tuples(fields, "rungs"))


def _tuples(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    lists: dict[str, Sequence[Any]] = {name: fields[name] for name in names}
    return fields | {name: tuple(values) for name, values in lists.items()}
