"""How much of the scores' differences each setting accounts for, told from few trials and with its doubt.

The scores at the full budget are explained by a function of each setting and a rest (`additive_process`). A
setting's share is the variance of its function over the *space*, not over the trials, which a search gathers
where scores are good; the rest is noise of the seeds and interplay. What chance alone gives is found by
shuffling the scores: a share below that says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.search.additive_process import Axis, Matrix, Model
from pipeline.search.full_budget import full_scores
from pipeline.search.records import SearchRecord, Value
from pipeline.search.scales import Scale

FEWEST_TRIALS = 5
"""Below this every setting could explain everything."""
SHUFFLES = 19
"""So that one search in twenty without any effect exceeds the largest of them."""


@dataclass(frozen=True)
class Importance:
    """What one setting explains."""

    name: str
    share: float
    """Of the variance of the scores over the space, from 0 to 1."""
    effect: tuple[tuple[Value, float], ...] = ()
    """Value → how much it adds to the score, against the mean of the trials that have the setting."""


@dataclass(frozen=True)
class Importances:
    """What all settings explain, most important first."""

    settings: tuple[Importance, ...]
    unexplained: float
    """The rest: noise of the seeds, and settings that matter only together."""
    num_trials: int
    chance: float = 0.0
    """The share that in one of twenty cases some setting gets of scores that are shuffled."""
    note: str = ""
    """Why nothing can be told; empty where it can."""

    def are_clear(self) -> tuple[Importance, ...]:
        """The settings that explain more than chance does."""
        return tuple(one for one in self.settings if one.share > self.chance)


def importances(record: SearchRecord) -> Importances:
    """The importance of every dimension of the search, by its trials so far."""
    scores = full_scores(record)
    trials = [trial for trial in record.trials if trial.number in scores]
    values = np.array([scores[trial.number].score for trial in trials])
    if not record.space:
        return _unknown(record, len(trials), "no setting was searched")
    if len(trials) < FEWEST_TRIALS:
        words = f"{len(trials)} scored trials tell nothing; {FEWEST_TRIALS} are needed"
        return _unknown(record, len(trials), words)
    if float(np.ptp(values)) <= 1e-9 * max(1.0, float(np.abs(values).max())):
        return _unknown(record, len(trials), "all trials scored alike")
    axes = [Axis(Scale(dimension), trials) for dimension in record.space]
    spread = float(values.std())
    standard = (values - values.mean()) / spread
    model = Model(axes)
    fit = model.fitted(standard)
    found = [
        Importance(axis.name, share, fit.effect(number, spread))
        for number, (axis, share) in enumerate(zip(axes, fit.shares(), strict=True))
    ]
    settings = tuple(sorted(found, key=lambda one: -one.share))
    unexplained = 1.0 - sum(one.share for one in settings)
    return Importances(settings, unexplained, len(trials), _chance(model, standard))


def _unknown(record: SearchRecord, num_trials: int, note: str) -> Importances:
    settings = tuple(Importance(dimension.name, 0.0) for dimension in record.space)
    return Importances(settings, 1.0, num_trials, note=note)


def _chance(model: Model, scores: Matrix) -> float:
    random = np.random.default_rng(0)
    fits = (model.fitted(random.permutation(scores)) for _ in range(SHUFFLES))
    return max(share for fit in fits for share in fit.shares())
