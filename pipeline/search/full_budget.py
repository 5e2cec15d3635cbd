"""What trials that ended early would have scored at the full budget, so that all can be compared.

A score at 200 steps says little beside one at 1,500. To it is added what those that went on gained from
there, on average, step by step of their evaluations. Those were the better ones, so that it may be a little
too much; it is for pictures and for the importance of settings, and nobody is picked by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.search.records import Point, SearchRecord, Trial


@dataclass(frozen=True)
class FullScore:
    """A trial's score at the full budget."""

    score: float
    measured: bool
    """False where it ended earlier, and this is an estimate."""


def full_scores(record: SearchRecord) -> dict[int, FullScore]:
    """Number of a trial → its score at the full budget; trials without a finite score are not there."""
    curves = {trial.number: curve for trial in record.trials if (curve := finite_points(trial))}
    grid = sorted({step for curve in curves.values() for step in curve})
    gains = {(a, b): _mean_gain(list(curves.values()), a, b) for a, b in pairwise(grid)}
    by_number = {trial.number: trial for trial in record.trials}
    scores = {}
    for number, curve in curves.items():
        last = max(curve)
        trial = by_number[number]
        if trial.state == "done":
            scores[number] = FullScore(curve[last], measured=True)
        else:
            rest = sum(gain for (begin, _), gain in gains.items() if begin >= last)
            scores[number] = FullScore(curve[last] + rest, measured=False)
    return scores


def finite_points(trial: Trial) -> dict[int, float]:
    """Step → score, in the order of steps."""
    return {point.step: point.score for point in trial.points if math.isfinite(point.score)}


def last_point(trial: Trial) -> Point | None:
    """Its last finite score, and the step of that; None without any."""
    curve = finite_points(trial)
    return Point(max(curve), curve[max(curve)]) if curve else None


def _mean_gain(curves: Sequence[dict[int, float]], begin: int, end: int) -> float:
    """From one step of an evaluation to the next, over the trials that have both; 0 without any."""
    gains = [curve[end] - curve[begin] for curve in curves if begin in curve and end in curve]
    return sum(gains) / len(gains) if gains else 0.0
