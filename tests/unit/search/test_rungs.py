"""Trials are stopped as Ray's own scheduler would stop them, which is the oracle here."""

import random
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler

from pipeline.errors import ConfigError
from pipeline.search.plan import SearchPlan
from pipeline.search.records import Dimension, Point, Trial
from pipeline.search.rungs import decide, reason, rungs

SPACE = (Dimension("a", low=0.0, high=1.0),)


def plan(**fields):
    return SearchPlan(
        SPACE, {"a": 0.5}, **{"num_trials": 9, "budget_steps": 90, "evaluate_every": 10} | fields
    )


def trial(number, *scores, every=10):
    points = tuple(Point((at + 1) * every, score) for at, score in enumerate(scores))
    return Trial(number, str(number), {}, points=points)


@pytest.mark.parametrize(
    ("budget", "every", "reduction", "expected"),
    [(90, 10, 3, (10, 30)), (500, 100, 3, (100, 200)), (2000, 250, 4, (250, 500)), (8, 1, 2, (1, 2, 4))],
)
def test_rungs_are_the_budget_over_powers_of_the_reduction_at_evaluations(budget, every, reduction, expected):
    assert rungs(plan(budget_steps=budget, evaluate_every=every, reduction=reduction)) == expected


def test_a_schedule_without_an_evaluation_before_the_end_is_refused_with_one_that_has_some():
    with pytest.raises(ConfigError, match=r"--train\.evaluate_every 30 or less"):
        rungs(plan(evaluate_every=90))
    assert rungs(plan(evaluate_every=90, scheduler="none")) == ()
    assert rungs(plan(scheduler="median")) == (20, 30, 40, 50, 60, 70, 80)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("mode", ["max", "min"])
def test_asha_decides_as_rays_scheduler_does_in_any_order_of_arrival(seed, mode):
    rng = random.Random(seed)
    asked = plan(reduction=rng.choice([2, 3, 4]), budget_steps=64, evaluate_every=1, mode=mode)
    ladder = rungs(asked)
    oracle = AsyncHyperBandScheduler(
        time_attr="step", metric="score", mode=mode, max_t=64, grace_period=1,
        reduction_factor=asked.reduction,
    )  # fmt: skip
    oracle._brackets[0]._rungs = [(step, {}) for step in reversed(ladder)]  # rungs are at evaluations here
    trials = {number: trial(number) for number in range(12)}
    for number in trials:
        oracle.on_trial_add(None, SimpleNamespace(trial_id=str(number)))
    alive, stopped = set(trials), 0
    while alive:
        number = rng.choice(sorted(alive))
        step = len(trials[number].points) + 1
        score = round(rng.random(), 1)  # with ties
        points = (*trials[number].points, Point(step, score))
        trials[number] = Trial(number, "", {}, points=points)
        said = oracle.on_trial_result(
            None, SimpleNamespace(trial_id=str(number)), {"step": step, "score": score}
        )
        if step == 64:
            alive.remove(number)
        elif step in ladder:
            others = [other for other in trials.values() if other.number != number]
            decision = decide(asked, trials[number], others, step)
            assert decision.passes == (said == "CONTINUE")
            if not decision.passes:
                alive.remove(number)
                stopped += 1
                assert f"{score:.3f}" in reason(asked, decision)
    assert stopped > 0


def test_the_first_at_a_rung_goes_on_as_there_is_nobody_to_be_held_against():
    decision = decide(plan(), trial(0, 0.1), [trial(1)], 10)
    assert (decision.bar, decision.others, decision.passes) == (None, 0, True)


def test_a_score_that_is_no_number_is_stopped_and_is_no_bar_for_others():
    nan = float("nan")
    assert not decide(plan(), trial(0, nan), [trial(1, 0.5)], 10).passes
    assert decide(plan(), trial(0, 0.1), [trial(1, nan)], 10).bar is None


def test_median_stops_whose_best_is_below_the_median_of_the_others_means():
    asked = plan(scheduler="median")
    others = [trial(1, 0.2, 0.4), trial(2, 0.4, 0.6), trial(3, 0.6, 0.8), trial(4, 0.9)]
    # Means until step 20: 0.3, 0.5, 0.7; trial 4 has not come so far.
    assert decide(asked, trial(0, 0.5, 0.4), others, 20).passes
    stopped = decide(asked, trial(0, 0.49, 0.4), others, 20)
    assert (stopped.score, stopped.bar, stopped.others, stopped.passes) == (0.49, 0.5, 3, False)
    assert reason(asked, stopped) == "0.490 until step 20 is worse than 0.500, the median of 3 others"
    assert decide(asked, trial(0, 0.1, 0.1), others[:2], 20).passes, "two others are no median"


def test_the_median_is_of_numbers_alone():
    asked, nan = plan(scheduler="median"), float("nan")
    others = [trial(1, 0.3, nan), trial(2, 0.4, 0.6), trial(3, 0.7, 0.7), trial(4, nan, nan)]
    decision = decide(asked, trial(0, 0.5, nan), others, 20)
    assert (decision.score, decision.bar, decision.others, decision.passes) == (0.5, 0.5, 3, True)
    assert not decide(asked, trial(0, nan, nan), others, 20).passes


@pytest.mark.parametrize(
    ("mode", "others", "words"),
    [
        ("max", (0.5,), "0.400 is worse than the 0.500 of the only one before it at step 10"),
        ("min", (0.3,), "0.400 is worse than the 0.300 of the only one before it at step 10"),
        ("max", (0.5, 0.6), "0.400 is not in the best 1/3 of 2 before it at step 10 (from 0.567 on)"),
    ],
)
def test_the_reason_of_a_stop_names_what_was_to_be_reached_and_by_how_many_it_was_set(mode, others, words):
    asked = plan(mode=mode)
    decision = decide(asked, trial(0, 0.4), [trial(1 + at, score) for at, score in enumerate(others)], 10)
    assert not decision.passes
    assert reason(asked, decision) == words
