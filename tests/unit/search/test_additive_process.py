"""The additive process is the Gaussian process that it says it is: held against the dense covariance."""

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from pipeline.search.additive_process import LENGTH, Axis, Fit, Model
from pipeline.search.records import Dimension, Trial
from pipeline.search.scales import Scale

SPACE = (
    Dimension("a.lr", low=1e-4, high=1e-1, log=True),
    Dimension("a.weight", (0.0,), low=0.0, high=1.0),
    Dimension("a.form", ("p", "q")),
    Dimension("a.delta", low=-1.0, high=1.0),
)


def drawn(num: int) -> list[Trial]:
    random = np.random.default_rng(0)
    trials = []
    for number in range(num):
        settings: dict[str, str | float] = {
            "a.lr": float(10 ** random.uniform(-4, -1)),
            "a.weight": 0.0 if random.random() < 0.4 else float(random.random()),
            "a.form": "pq"[random.integers(2)],
        }
        if settings["a.form"] == "q":
            settings["a.delta"] = float(random.uniform(-1, 1))
        trials.append(Trial(number, "", settings))
    return trials


def kernel(name: str, one: Trial, other: Trial) -> float:
    """k_j as the module's docstring has it."""
    if name not in one.settings or name not in other.settings:
        return 0.0
    a, b = one.settings[name], other.settings[name]
    if name == "a.form" or (name == "a.weight" and 0.0 in (a, b)):
        return float(a == b)
    span = {"a.lr": 3.0, "a.weight": 1.0, "a.delta": 2.0}[name]
    distance = (math.log10(a / b) if name == "a.lr" else a - b) / span
    return math.exp(-0.5 * (distance / LENGTH) ** 2)


@pytest.mark.parametrize("weights", [(1.0, 0.3, 0.1, 3.0), (0.0, 0.3, 0.0, 1.0), (0.0, 0.0, 0.0, 0.0)])
@pytest.mark.parametrize("noise", [0.1, 0.7])
def test_the_likelihood_is_that_of_the_dense_covariance_less_bics_price(
    weights: tuple[float, ...], noise: float
) -> None:
    trials = drawn(30)
    scores = np.random.default_rng(1).normal(size=30)
    dense = np.ones((30, 30)) + noise * np.eye(30)
    for weight, dimension in zip(weights, SPACE, strict=True):
        dense += weight * np.array([[kernel(dimension.name, a, b) for b in trials] for a in trials])
    expected = multivariate_normal(np.zeros(30), dense).logpdf(scores) + 15 * math.log(2 * math.pi)
    expected -= 0.5 * math.log(30) * sum(weight > 0 for weight in weights)
    fit = Fit(Model([Axis(Scale(dimension), trials) for dimension in SPACE]), scores, weights, noise)
    assert fit.likelihood == pytest.approx(expected, abs=0.02)


def test_a_setting_that_half_the_trials_leave_idle_has_the_variance_of_their_mixture() -> None:
    trials = drawn(40)
    scores = np.random.default_rng(3).normal(size=40)
    fit = Fit(Model([Axis(Scale(dimension), trials) for dimension in SPACE]), scores, (0, 0, 0.1, 1.0), 0.2)
    random = np.random.default_rng(4)
    share = sum("a.delta" in trial.settings for trial in trials) / len(trials)
    places = dict(fit.effect(3, 1.0))
    mean = np.mean([_curve_at(fit, trial) for trial in trials if "a.delta" in trial.settings])
    values = np.array(list(places.values())) + mean  # what is told is against the mean of those that have it
    drawn_values = random.choice(values, 200_000) * (random.random(200_000) < share)
    ratio = fit.shares()[3] / fit.shares()[2]
    forms = np.array([added for _, added in fit.effect(2, 1.0)])
    assert ratio == pytest.approx(drawn_values.var() / forms.var(), rel=0.03)


def _curve_at(fit: Fit, trial: Trial) -> float:
    """The component of delta at a trial, by its features."""
    axis = fit._model.axes[3]
    return float(axis.of_trials[trial.number] @ fit._slopes(3))


def test_a_components_curve_is_the_posterior_mean_of_the_dense_process() -> None:
    trials = drawn(30)
    scores = np.random.default_rng(2).normal(size=30)
    weights, noise = (1.0, 0.3, 0.1, 0.3), 0.2
    matrices = [np.array([[kernel(d.name, a, b) for b in trials] for a in trials]) for d in SPACE]
    dense = (
        np.ones((30, 30)) + noise * np.eye(30) + sum(w * k for w, k in zip(weights, matrices, strict=True))
    )
    dual = np.linalg.solve(dense, scores)
    fit = Fit(Model([Axis(Scale(dimension), trials) for dimension in SPACE]), scores, weights, noise)
    at_trials = weights[0] * matrices[0] @ dual
    for value, added in fit.effect(0, 1.0)[::5]:
        place = Trial(0, "", {"a.lr": value})
        mean = weights[0] * np.array([kernel("a.lr", place, trial) for trial in trials]) @ dual
        assert added == pytest.approx(mean - at_trials.mean(), abs=0.01)
