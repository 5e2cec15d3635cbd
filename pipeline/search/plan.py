"""What a search was asked for, which decides all that it proposes and stops: search.json holds it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.config import require
from pipeline.search.records import Dimension, Mode, Settings, dimension_from_json

Algorithm = Literal["tpe", "random", "sobol"]
Scheduler = Literal["asha", "median", "none"]


@dataclass(frozen=True)
class SearchPlan:
    """A whole search, before its first trial."""

    space: tuple[Dimension, ...]
    defaults: Settings
    """What the settings of the space are in the config that trials begin from."""
    num_trials: int
    """Trials, that of the defaults and those of the points included; a search that has them all may go on
    with more."""
    points: tuple[Settings, ...] = ()
    """Settings that are tried after the defaults and before what the algorithm proposes."""
    budget_steps: int = 1
    """Steps of a full training."""
    evaluate_every: int = 1
    """Steps between two scores."""
    algorithm: Algorithm = "tpe"
    scheduler: Scheduler = "asha"
    reduction: int = 3
    """Of the trials that reach a rung, about one in so many goes on; of asha."""
    seed: int = 0
    """Seed of the proposals, and of every trial's training."""
    repeat: int = 0
    """Fresh seeds with which the best are trained again."""
    finalists: int = 3
    """How many are."""
    metric: str = "val/miou"
    mode: Mode = "max"
    held_out: tuple[str, ...] = ()
    """Drives that no trial trains on, and that all are scored on."""

    def __post_init__(self) -> None:
        require(self.num_trials >= 1, f"--trials must be at least 1, got {self.num_trials}")
        require(self.reduction >= 2, f"--reduction must be at least 2, got {self.reduction}")
        require(self.repeat >= 0, f"--repeat must be at least 0, got {self.repeat}")
        require(self.finalists >= 1, f"--finalists must be at least 1, got {self.finalists}")
        require(self.seed >= 0, f"the seed must be at least 0, got {self.seed}")
        require(
            len(self.points) < self.num_trials,
            f"--points has {len(self.points)} settings, and the defaults are tried as well: type --trials "
            f"{len(self.points) + 1} or more",
        )
        num, most = self.num_settings(), self._most_trials()
        require(
            most is None or self.num_trials <= most,
            f"--trials {self.num_trials}: the space has {num} settings, and one once more would score the "
            f"same; type --trials {most} or less, or a wider --space",
        )

    def _most_trials(self) -> int | None:
        """How many there are that differ: of the space, and the defaults and points beside it."""
        num = self.num_settings()
        beside = [
            tried
            for tried in (self.defaults, *self.points)
            if any(d.name in tried and not d.has(tried[d.name]) for d in self.space)
        ]
        return None if num is None else num + len(beside)

    def num_settings(self) -> int | None:
        """How many settings the space has, were none of them ever idle; None where that has no end."""
        sizes = [dimension.size for dimension in self.space]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    @property
    def sign(self) -> float:
        """What a score is multiplied by to make more be better."""
        return 1.0 if self.mode == "max" else -1.0


def plan_to_json(plan: SearchPlan) -> dict[str, Any]:
    """The plan as plain values."""
    return dataclasses.asdict(plan)


def plan_from_json(content: Mapping[str, Any]) -> SearchPlan:
    """The plan that `plan_to_json` wrote; raises TypeError or KeyError for anything else."""
    fields = dict(content)
    fields["space"] = tuple(dimension_from_json(dimension) for dimension in content["space"])
    fields["points"] = tuple(content["points"])
    fields["held_out"] = tuple(content["held_out"])
    return SearchPlan(**fields)


MAY_CHANGE = ("num_trials", "repeat", "finalists", "defaults")
"""What may be asked for anew: more of the same, as trials that are there stay; and what the config tells."""


def plan_differences(held: SearchPlan, wanted: SearchPlan) -> list[str]:
    """`name: held, now wanted` for each field in which two plans are two searches."""
    names = [field.name for field in dataclasses.fields(SearchPlan) if field.name not in MAY_CHANGE]
    pairs = [(name, getattr(held, name), getattr(wanted, name)) for name in names]
    return [
        _difference(name, before, now)
        for name, before, now in pairs
        if before != now
    ]  # fmt: skip


def _difference(name: str, before: object, now: object) -> str:
    if name != "space":
        return f"{name} {before}, now {now}"
    assert isinstance(before, tuple)
    assert isinstance(now, tuple)
    changed = [d.name for d in (*before, *now) if d not in before or d not in now]
    return f"space in {', '.join(dict.fromkeys(changed))}"
