"""Tree-structured Parzen estimator, by Optuna: where good trials gather, against where the others do.

Optuna is handed the trials as the search's record has them, anew for each proposal, and draws with a seed
of that proposal. So it has no state that a killed driver could lose. A trial that was stopped counts as
pruned: better the longer it lasted, and by its last score among its like; a running one as poor, so that
trials side by side do not crowd one place; one that failed, or has no finite score, as the worst of all.

Source: Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011; Optuna's defaults.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from pipeline.search.full_budget import finite_points
from pipeline.search.records import Dimension, Settings, Trial, Value

FEWEST_AT_RANDOM, MOST_AT_RANDOM, SHARE_AT_RANDOM = 3, 10, 4
"""Trials before the model is asked: one in four of all, between these."""
KIND = " kind"
"""End of the name of the parameter that tells a value beside a range from the range."""
IN_RANGE = "range"


def propose_tpe(
    space: Sequence[Dimension], trials: Sequence[Trial], num_trials: int, sign: float, entropy: Sequence[int]
) -> dict[str, Value]:
    """A value for every dimension; `entropy` seeds the draw, scores are multiplied by `sign`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    at_random = min(max(num_trials // SHARE_AT_RANDOM, FEWEST_AT_RANDOM), MOST_AT_RANDOM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=at_random, seed=_seed(entropy), constant_liar=True
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials(_as_optuna_has_them(space, trials, sign))
        asked = study.ask(fixed_distributions=_distributions(space))
    return {dimension.name: _value(dimension, asked.params) for dimension in space}


def _seed(entropy: Sequence[int]) -> int:
    digest = hashlib.sha256(" ".join(map(str, entropy)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _distributions(space: Sequence[Dimension]) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {}
    for dimension in space:
        if dimension.has_range:
            found[dimension.name] = _range(dimension)
            if dimension.values:
                found[dimension.name + KIND] = CategoricalDistribution(_kinds(dimension))
        else:
            found[dimension.name] = CategoricalDistribution(dimension.values)
    return found


def _range(dimension: Dimension) -> FloatDistribution | IntDistribution:
    assert dimension.low is not None
    assert dimension.high is not None
    if dimension.whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def _kinds(dimension: Dimension) -> tuple[str, ...]:
    return (IN_RANGE, *(str(value) for value in dimension.values))


def _value(dimension: Dimension, params: Mapping[str, Value]) -> Value:
    kind = params.get(dimension.name + KIND, IN_RANGE)
    if kind == IN_RANGE:
        return params[dimension.name]
    return next(value for value in dimension.values if str(value) == kind)


def _params(space: Sequence[Dimension], settings: Settings) -> dict[str, Value]:
    """The parameters that stand for a trial's settings: those within the space."""
    found: dict[str, Value] = {}
    for dimension in space:
        if dimension.name not in settings:
            continue
        value = settings[dimension.name]
        if value in dimension.values:
            found |= {dimension.name + KIND: str(value)} if dimension.has_range else {dimension.name: value}
        elif dimension.has_range and dimension.low <= value <= dimension.high:  # type: ignore[operator]
            found |= {dimension.name: value} | ({dimension.name + KIND: IN_RANGE} if dimension.values else {})
    return found


def _as_optuna_has_them(
    space: Sequence[Dimension], trials: Sequence[Trial], sign: float
) -> list[FrozenTrial]:
    distributions = _distributions(space)
    curves = [{step: sign * score for step, score in finite_points(trial).items()} for trial in trials]
    scores = [score for points in curves for score in points.values()]
    made: list[FrozenTrial] = []
    for trial, points in zip(trials, curves, strict=True):
        params = _params(space, trial.settings)
        own = {name: distributions[name] for name in params}
        if trial.state == "failed" or (trial.state == "done" and not points):
            if scores:
                made.append(create_trial(params=params, distributions=own, value=min(scores)))
        elif trial.state == "done":
            made.append(
                create_trial(
                    params=params, distributions=own, value=points[max(points)], intermediate_values=points
                )
            )
        else:
            state = TrialState.RUNNING if trial.state == "running" else TrialState.PRUNED
            made.append(
                create_trial(state=state, params=params, distributions=own, intermediate_values=points)
            )
    return made
