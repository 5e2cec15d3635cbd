"""What each setting explains: the shares are those that the formula behind the scores has."""

import math

import numpy as np
import pytest

from pipeline.search.importance import FEWEST_TRIALS, importances
from pipeline.search.records import Dimension, Point, SearchRecord, Settings, Trial
from tests.searches import search

SPACE = (
    Dimension("a.strong", low=0.0, high=1.0),
    Dimension("a.weak", low=1e-4, high=1e-1, log=True),
    Dimension("a.idle", low=0.0, high=1.0),
    Dimension("a.choice", ("p", "q", "r")),
)


def record_of(settings: list[Settings], scores: list[float], space=SPACE) -> SearchRecord:
    trials = tuple(
        Trial(number, f"t{number}", values, "done", (Point(100, score),), (), 100, 100)
        for number, (values, score) in enumerate(zip(settings, scores, strict=True))
    )
    return SearchRecord("s", "val/miou", "max", space, {}, trials, len(trials), 100)


def drawn(num: int, seed: int) -> list[dict[str, str | float]]:
    random = np.random.default_rng(seed)
    return [
        {
            "a.strong": float(random.random()),
            "a.weak": float(10 ** random.uniform(-4, -1)),
            "a.idle": float(random.random()),
            "a.choice": "pqr"[random.integers(3)],
        }
        for _ in range(num)
    ]


def shares(record: SearchRecord) -> dict[str, float]:
    return {one.name: one.share for one in importances(record).settings}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shares_are_the_formulas_own_variances(seed: int) -> None:
    settings = drawn(60, seed)
    scores = [0.5 * float(s["a.strong"]) + 0.2 * (math.log10(float(s["a.weak"])) + 4) / 3 for s in settings]
    found = shares(record_of(settings, scores))
    # Of a linear function over evenly drawn settings the variances are as the squares of the slopes.
    assert found["a.strong"] == pytest.approx(0.25 / 0.29, abs=0.06)
    assert found["a.weak"] == pytest.approx(0.04 / 0.29, abs=0.06)
    assert found["a.idle"] < 0.01
    assert found["a.choice"] < 0.01


def test_a_dozen_trials_tell_the_setting_that_matters_and_that_the_rest_may_be_luck() -> None:
    random = np.random.default_rng(3)
    settings = drawn(12, 3)
    scores = [0.5 * float(s["a.strong"]) + 0.02 * float(random.normal()) for s in settings]
    found = importances(record_of(settings, scores))
    assert found.settings[0].name == "a.strong"
    assert [one.name for one in found.are_clear()] == ["a.strong"]


def test_of_mere_noise_next_to_nothing_is_clear() -> None:
    clear = 0
    for seed in range(20):
        scores = np.random.default_rng(100 + seed).normal(size=16).tolist()
        clear += len(importances(record_of(drawn(16, seed), scores)).are_clear())
    assert clear <= 3, "one search in twenty is expected to be fooled"


def test_a_choice_explains_what_its_groups_differ_by() -> None:
    settings = drawn(60, 4)
    scores = [{"p": 0.3, "q": 0.5, "r": 0.5}[str(s["a.choice"])] for s in settings]
    found = importances(record_of(settings, scores))
    assert found.settings[0].name == "a.choice"
    assert found.settings[0].share > 0.9
    effect = dict(found.settings[0].effect)
    assert effect["q"] - effect["p"] == pytest.approx(0.2, abs=0.02)


def test_a_conditional_setting_speaks_of_the_trials_that_have_it() -> None:
    space = (Dimension("a.form", ("hinge", "car")), Dimension("a.delta", low=0.0, high=1.0))
    random = np.random.default_rng(5)
    settings: list[dict[str, str | float]] = []
    for number in range(60):
        settings.append(
            {"a.form": "car"} if number % 2 else {"a.form": "hinge", "a.delta": float(random.random())}
        )
    scores = [0.3 + 0.4 * (float(s["a.delta"]) - 0.5) if "a.delta" in s else 0.3 for s in settings]
    found = shares(record_of(settings, scores, space))
    assert found["a.delta"] > 0.9, "half the trials have it, and all differences are its own"
    assert found["a.form"] < 0.05


def test_trials_gathered_where_scores_are_good_lend_no_importance_to_what_went_along() -> None:
    random = np.random.default_rng(6)
    settings = drawn(50, 6)
    for one in settings:
        one["a.idle"] = min(max(float(one["a.strong"]) + 0.15 * float(random.normal()), 0.0), 1.0)
    scores = [0.5 * float(s["a.strong"]) + 0.01 * float(random.normal()) for s in settings]
    found = shares(record_of(settings, scores))
    assert found["a.strong"] > 5 * found["a.idle"]


def test_an_early_end_is_not_taken_for_a_bad_setting() -> None:
    settings = drawn(30, 7)
    trials = []
    for number, values in enumerate(settings):
        stopped = float(values["a.idle"]) > 0.5  # all learn alike; only where they end differs
        points = tuple(Point(step, 0.001 * step) for step in (100, 200, 300) if step == 100 or not stopped)
        state = "stopped" if stopped else "done"
        trials.append(Trial(number, "", values, state, points, (), 300, points[-1].step))
    record = SearchRecord("s", "val/miou", "max", SPACE, {}, tuple(trials), 30, 300)
    assert importances(record).note == "all trials scored alike"


@pytest.mark.parametrize("num", range(FEWEST_TRIALS))
def test_too_few_trials_say_so_and_claim_nothing(num: int) -> None:
    found = importances(record_of(drawn(num, 8), [0.1 * n for n in range(num)]))
    assert str(num) in found.note
    assert {one.share for one in found.settings} == {0.0}
    assert len(found.settings) == len(SPACE)


def test_the_searched_formula_is_told_from_stopped_and_finished_trials_alike() -> None:
    record = search(40)
    assert sum(trial.state == "stopped" for trial in record.trials) > 20
    first, second = (one.name for one in importances(record).settings[:2])
    assert (first, second) == ("model.head.fusion", "model.head.tau")


def test_a_setting_that_never_varied_explains_nothing() -> None:
    settings = [{**one, "a.idle": 0.5} for one in drawn(20, 9)]
    assert shares(record_of(settings, [float(s["a.strong"]) for s in settings]))["a.idle"] == 0.0


def test_scores_that_are_not_finite_are_left_out() -> None:
    settings = drawn(20, 10)
    scores = [float(s["a.strong"]) for s in settings]
    scores[3], scores[4] = float("nan"), float("inf")
    found = importances(record_of(settings, scores))
    assert found.num_trials == 18
    assert found.settings[0].name == "a.strong"
