"""Who leads a search, and by how much: what was measured at the full budget, repeats by their mean.

A trial that was repeated with fresh seeds is judged by the mean of these alone: it was chosen by the score of
its first seed, which therefore flatters it. Repeated ones stand before those that were trained once, and
these before those that ended early, whose scores are of smaller budgets. Ties go to the smaller number: the
defaults, which are trial 0, lose only to what is better.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.search.full_budget import finite_points
from pipeline.search.records import SearchRecord, Trial


@dataclass(frozen=True)
class Standing:
    """The place of one setting of the space."""

    rank: int
    """From 1 on."""
    trial: Trial
    """The one that tried it first."""
    score: float | None
    """What it is ranked by; None where nothing was scored."""
    spread: float | None
    """Standard deviation over the seeds; None with fewer than two."""
    seeds: int
    """Trainings that `score` is a mean of."""
    step: int
    """Optimizer steps behind the score."""
    is_repeated: bool = False
    """Whether the score is that of fresh seeds."""

    @property
    def fresh_seeds(self) -> str:
        """How many fresh seeds the score is a mean of, in words."""
        return "1 fresh seed" if self.seeds == 1 else f"{self.seeds} fresh seeds"

    @property
    def is_full(self) -> bool:
        """True where it was trained to the end of its budget."""
        return self.trial.state == "done"


def leaderboard(record: SearchRecord) -> list[Standing]:
    """All searched trials, best first; those without a score come last."""
    better = -1.0 if record.mode == "max" else 1.0
    standings = [_standing(record, trial) for trial in record.searched()]

    def order(standing: Standing) -> tuple[int, int, float, int]:
        if standing.score is None:
            return 3, 0, 0.0, standing.trial.number
        if not standing.is_full:
            return 2, -standing.step, better * standing.score, standing.trial.number
        return 0 if standing.is_repeated else 1, 0, better * standing.score, standing.trial.number

    ranked = sorted(standings, key=order)
    return [replace(standing, rank=number) for number, standing in enumerate(ranked, start=1)]


def winner(record: SearchRecord) -> Standing | None:
    """Who leads; None before a trial was trained to the end of its budget."""
    first = leaderboard(record)[:1]
    return first[0] if first and first[0].is_full and first[0].score is not None else None


def _standing(record: SearchRecord, trial: Trial) -> Standing:
    repeats = record.repeats_of(trial.number) if trial.state == "done" else ()
    fresh = _curves([again for again in repeats if again.state == "done"])
    curves = fresh or _curves([trial])
    scores = [curve[max(curve)] for curve in curves]
    if not scores:
        return Standing(0, trial, None, None, 0, trial.step)
    spread = statistics.stdev(scores) if len(scores) > 1 else None
    mean = statistics.fmean(scores)
    return Standing(0, trial, mean, spread, len(scores), max(curves[0]), is_repeated=bool(fresh))


def _curves(trainings: Sequence[Trial]) -> list[dict[int, float]]:
    """Step → score of each that has a score."""
    return [curve for training in trainings if (curve := finite_points(training))]


def gain(record: SearchRecord, standing: Standing) -> float | None:
    """How much better it is than the defaults, trial 0; None where these were not trained to the end.

    Where both were repeated it is a difference of means, else of single trainings.
    """
    defaults = next((one for one in leaderboard(record) if one.trial.number == 0), None)
    if defaults is None or not defaults.is_full or defaults.score is None or standing.score is None:
        return None
    return standing.score - defaults.score if record.mode == "max" else defaults.score - standing.score
