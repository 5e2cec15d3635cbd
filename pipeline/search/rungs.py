"""Which trials are stopped before the end of their budget, and by what: functions of the scores alone.

`asha`: asynchronous successive halving (Li et al., A System for Massively Parallel Hyperparameter Tuning,
2018), as Ray's AsyncHyperBandScheduler has it with one bracket. At each rung a trial is held against those
that came there before it: it goes on in the best 1/reduction of them.
`median`: Vizier's rule (Golovin et al., 2017). At each evaluation the best score of a trial so far is held
against the median of the others' mean scores up to there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from pipeline.config import require
from pipeline.search.full_budget import finite_points
from pipeline.search.plan import SearchPlan
from pipeline.search.records import Trial

FEWEST_OTHERS = 3
"""Trials that a median is taken of, at least."""
FIRST_SHARE = 0.2
"""Of the budget, before the median rule stops a trial: the curves of a warm-up tell nothing."""


@dataclass(frozen=True)
class Decision:
    """What a scheduler said of a trial at one of its scores."""

    step: int
    score: float
    bar: float | None
    """What the score had to reach; None where there was nobody to be held against."""
    others: int
    """How many trials the bar was made of."""

    @property
    def passes(self) -> bool:
        """Whether the trial goes on; `score` and `bar` are such that more is better."""
        return self.bar is None or self.score >= self.bar


def rungs(plan: SearchPlan) -> tuple[int, ...]:
    """The steps, below the budget, at which trials are decided on; raises ConfigError where there are none.

    Of asha, the budget over powers of the reduction, each at the nearest evaluation; of the median rule, all
    evaluations but the first ones.
    """
    budget, every = plan.budget_steps, plan.evaluate_every
    if plan.scheduler == "none":
        return ()
    if plan.scheduler == "asha":
        exact = (budget / plan.reduction**power for power in range(1, 64))
        steps = {math.floor(step / every + 0.5) * every for step in exact}
    else:
        steps = {step for step in range(every, budget, every) if step >= FIRST_SHARE * budget}
    found = tuple(sorted(step for step in steps if 0 < step < budget))
    require(
        bool(found),
        f"scheduler {plan.scheduler} stops trials at evaluations before their end, and there is none: type "
        f"--train.evaluate_every {max(budget // plan.reduction, 1)} or less, or --scheduler none",
    )
    return found


def decide(plan: SearchPlan, trial: Trial, others: Sequence[Trial], step: int) -> Decision:
    """What is said of a trial that was scored at a rung; `others` have their points so far.

    Scores and bar are multiplied by the plan's sign.
    """
    own = next(point.score for point in trial.points if point.step == step) * plan.sign
    if plan.scheduler == "asha":
        there = [s for other in others if (s := _score_at(plan, other, step)) is not None]
        bar = float(np.percentile(there, 100 * (1 - 1 / plan.reduction))) if there else None
        return Decision(step, own, bar, len(there))
    best = max(_finite_until(plan, trial, step), default=own)
    means = [m for other in others if (m := _mean_until(plan, other, step)) is not None]
    return Decision(step, best, median(means) if len(means) >= FEWEST_OTHERS else None, len(means))


def reason(plan: SearchPlan, decision: Decision) -> str:
    """Why a trial was stopped, for a person."""
    assert decision.bar is not None
    score, bar = decision.score * plan.sign, decision.bar * plan.sign
    if plan.scheduler == "median":
        others = f"{bar:.3f}, the median of {decision.others} others"
        return f"{score:.3f} until step {decision.step} is worse than {others}"
    if decision.others == 1:
        return f"{score:.3f} is worse than the {bar:.3f} of the only one before it at step {decision.step}"
    what = f"the best 1/{plan.reduction} of {decision.others} before it at step {decision.step}"
    return f"{score:.3f} is not in {what} (from {bar:.3f} on)"


def _score_at(plan: SearchPlan, trial: Trial, step: int) -> float | None:
    score = finite_points(trial).get(step)
    return None if score is None else score * plan.sign


def _mean_until(plan: SearchPlan, trial: Trial, step: int) -> float | None:
    """The mean of its scores up to that step; None for a trial that did not get there."""
    scores = _finite_until(plan, trial, step)
    reached = any(point.step >= step for point in trial.points)
    return sum(scores) / len(scores) if scores and reached else None


def _finite_until(plan: SearchPlan, trial: Trial, step: int) -> list[float]:
    return [score * plan.sign for at, score in finite_points(trial).items() if at <= step]
