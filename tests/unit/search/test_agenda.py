"""What is trained next follows from what there is, so a search that was killed goes on as it would have."""

import dataclasses
import json
import math

import pytest

from pipeline.errors import ConfigError
from pipeline.recipes import laptop
from pipeline.search.agenda import finalists, is_complete, next_order, num_planned
from pipeline.search.leaderboard import winner
from pipeline.search.plan import MAY_CHANGE, SearchPlan, plan_differences, plan_from_json, plan_to_json
from pipeline.search.records import Dimension, Point, SearchRecord, Trial
from pipeline.search.space import defaults_of, read_space
from pipeline.search.table import best_so_far
from pipeline.search.tpe import propose_tpe

CONFIG = laptop()
TAU = "model.head.tau"


def plan(space="accm-losses", **fields):
    read = read_space(CONFIG, space, {}, 11) if space in ("accm-losses", "recipe") else space
    return SearchPlan(read, defaults_of(CONFIG, read), **{"num_trials": 6} | fields)


def trained(order, score, state="done"):
    return Trial(
        order.number, order.name, order.settings, state, (Point(1, score),), seed=order.seed,
        repeats=order.repeats,
    )  # fmt: skip


def run(asked, score, most=60):
    trials = []
    while (order := next_order(asked, CONFIG, trials)) and len(trials) < most:
        trials.append(trained(order, score(order)))
    return trials


def good_at_tau_20(order):
    return 1 - abs(order.settings.get(TAU, 15.0) - 20) / 40


@pytest.mark.parametrize("algorithm", ["tpe", "random", "sobol"])
def test_the_defaults_are_trial_0_then_the_points_then_proposals_that_are_all_different(algorithm):
    points = ({TAU: 33.0}, {"model.head.fusion": "gate", "model.head.alpha": 0.5})
    asked = plan(algorithm=algorithm, points=points, num_trials=9)
    trials = run(asked, good_at_tau_20)
    assert [trial.number for trial in trials] == list(range(9))
    assert (trials[0].name, trials[1].settings, trials[2].settings) == ("defaults", *points)
    assert len({json.dumps(dict(trial.settings), sort_keys=True) for trial in trials}) == 9
    assert is_complete(asked, CONFIG, trials)


@pytest.mark.parametrize("algorithm", ["tpe", "random", "sobol"])
def test_a_search_that_was_cut_off_anywhere_proposes_what_it_would_have(algorithm):
    asked = plan(algorithm=algorithm, num_trials=14)
    whole = run(asked, good_at_tau_20)
    for cut in (1, 5, 11):
        order = next_order(asked, CONFIG, whole[:cut])
        assert (order.settings, order.name) == (whole[cut].settings, whole[cut].name)
    other = run(dataclasses.replace(asked, seed=1), good_at_tau_20)
    assert other[1].settings != whole[1].settings


@pytest.mark.parametrize("algorithm", ["tpe", "random", "sobol"])
def test_a_space_of_a_few_settings_is_tried_whole_before_one_is_tried_again(algorithm):
    space = (Dimension("model.head.p", (1, 2)), Dimension("model.head.fusion", ("off", "gate", "mlp")))
    space += (Dimension("optim.warmup_steps", (), 1.0, 4.0, whole=True),)
    asked = plan(space, num_trials=24, algorithm=algorithm)
    trials = run(asked, lambda order: 0.5)
    assert len({json.dumps(dict(trial.settings), sort_keys=True) for trial in trials}) == 24


def test_the_even_spread_begins_at_its_beginning_whatever_points_come_before():
    points = ({TAU: 33.0}, {TAU: 34.0})
    bare = run(plan(algorithm="sobol", num_trials=5), good_at_tau_20)
    after = run(plan(algorithm="sobol", num_trials=7, points=points), good_at_tau_20)
    assert [trial.settings for trial in after[3:]] == [trial.settings for trial in bare[1:]]


def test_a_space_of_which_nothing_can_be_made_is_an_error_and_no_trial_of_nothing():
    lr, least = Dimension("optim.lr", low=1e-4, high=1e-3), Dimension("optim.min_lr", low=2e-3, high=2.5e-3)
    asked = plan((lr, least), algorithm="random")
    with pytest.raises(ConfigError, match=r"optim\.min_lr must be in"):
        run(asked, good_at_tau_20)


def test_tpe_gathers_where_scores_are_good():
    space = read_space(CONFIG, "accm-losses", {}, 11)[:1]
    asked = plan(space, num_trials=40, algorithm="tpe")
    trials = run(asked, good_at_tau_20)
    late = [trial.settings[TAU] for trial in trials[-12:]]
    assert sum(14 < tau < 28 for tau in late) >= 9, late
    assert max(trials, key=lambda trial: trial.points[-1].score).settings[TAU] == pytest.approx(20, abs=1.5)


@pytest.mark.parametrize(("best", "where"), [(0.0, lambda v: v == 0.0), (0.5, lambda v: 0.1 < v < 3)])
def test_tpe_finds_whether_the_value_beside_a_range_or_the_range_is_good(best, where):
    """lambda_inter is 0, or 0.001 to 3: as a weight of 0 it would be far from everything, if it were one."""
    inter = Dimension("model.head.lambda_inter", (0.0,), 0.001, 3.0, log=True)
    asked = plan((inter, Dimension(TAU, low=5.0, high=40.0)), num_trials=30, algorithm="tpe")

    def score(order):
        value = order.settings[inter.name]
        return float(value == 0.0) if best == 0.0 else -abs(math.log((value or 1e-3) / best))

    late = [trial.settings[inter.name] for trial in run(asked, score)[-12:]]
    assert sum(map(where, late)) >= 8, late


def test_tpe_gathers_where_scores_are_low_if_less_is_better():
    space = read_space(CONFIG, "accm-losses", {}, 11)[:1]
    asked = plan(space, num_trials=30, algorithm="tpe", mode="min")
    late = [trial.settings[TAU] for trial in run(asked, lambda order: -good_at_tau_20(order))[-10:]]
    assert sum(14 < tau < 28 for tau in late) >= 7, late


@pytest.mark.parametrize("state", ["stopped", "running", "failed"])
def test_tpe_is_told_of_a_trial_that_was_not_trained_to_its_end(state):
    """Were it not, it would propose the same settings once more."""
    asked = plan(num_trials=12)
    trials = run(asked, good_at_tau_20)[:8]
    told = propose_tpe(asked.space, trials, 12, 1.0, (0, 8, 0))
    poor = (Point(1, 0.0),) if state == "stopped" else ()
    tried = Trial(8, "", told, state, poor)
    assert propose_tpe(asked.space, [*trials, tried], 12, 1.0, (0, 8, 0)) != told


def test_tpe_hears_of_stopped_running_and_failed_trials():
    asked = plan(num_trials=12)
    trials = run(asked, good_at_tau_20)[:8]
    told = propose_tpe(asked.space, trials, 12, 1.0, (0, 8, 0))
    best = max(range(8), key=lambda number: trials[number].points[-1].score)
    for state in ("stopped", "running", "failed"):
        changed = [
            dataclasses.replace(trial, state=state) if trial.number == best else trial for trial in trials
        ]
        assert propose_tpe(asked.space, changed, 12, 1.0, (0, 8, 0)) != told, state


def test_running_trials_are_not_waited_for_until_the_search_is_to_be_repeated():
    asked = plan(num_trials=3, repeat=1, finalists=1)
    trials = [trained(next_order(asked, CONFIG, []), 0.5)]
    trials.append(dataclasses.replace(trained(next_order(asked, CONFIG, trials), 0.9), state="running"))
    trials.append(trained(next_order(asked, CONFIG, trials), 0.7))
    assert next_order(asked, CONFIG, trials) is None, "trial 1 may yet be among the best"
    trials[1] = dataclasses.replace(trials[1], state="done")
    assert next_order(asked, CONFIG, trials).repeats == 1


def test_the_best_and_the_defaults_are_trained_again_with_fresh_seeds_and_the_mean_wins():
    asked = plan(num_trials=5, repeat=2, finalists=2, seed=4)
    lucky = {0: [0.5, 0.5, 0.5], 3: [0.9, 0.1, 0.1], 1: [0.8, 0.7, 0.6], 2: [0.2], 4: [0.3]}

    def score(order):
        of = order.number if order.repeats is None else order.repeats
        return lucky[of][order.seed - 4]

    trials = run(asked, score)
    assert [trial.number for trial in finalists(asked, trials)] == [3, 1, 0]
    assert [(trial.repeats, trial.seed) for trial in trials[5:]] == [
        (3, 5), (3, 6), (1, 5), (1, 6), (0, 5), (0, 6),
    ]  # fmt: skip
    assert len(trials) == num_planned(asked)
    best = winner(SearchRecord("s", asked.metric, asked.mode, asked.space, asked.defaults, tuple(trials)))
    assert (best.trial.number, best.score, best.seeds) == (1, pytest.approx(0.65), 2)


def test_only_trials_that_were_trained_to_their_end_are_repeated():
    asked = plan(num_trials=3, repeat=1)
    trials = run(dataclasses.replace(asked, repeat=0), good_at_tau_20)
    trials[1] = dataclasses.replace(trials[1], state="stopped", points=(Point(1, 2.0),))
    assert {trial.number for trial in finalists(asked, trials)} == {0, 2}


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_score_that_is_no_number_decides_nothing(mode):
    """Compared with NaN no order of trials is one, and Optuna takes none."""
    asked, nan = plan(num_trials=6, repeat=1, finalists=3, mode=mode, algorithm="tpe"), float("nan")
    trials = run(dataclasses.replace(asked, repeat=0), good_at_tau_20)
    sign = {"max": 1, "min": -1}[mode]
    curves = [(0.5,), (nan,), (0.9, nan), (0.7,), (nan, nan), (0.8,)]
    for number, curve in enumerate(curves):
        points = tuple(Point(1 + step, sign * score) for step, score in enumerate(curve))
        trials[number] = dataclasses.replace(trials[number], points=points)
    assert [trial.number for trial in finalists(asked, trials)] == [2, 5, 3, 0]
    record = SearchRecord("s", asked.metric, mode, asked.space, asked.defaults, tuple(trials))
    assert winner(record).trial.number == 2
    assert best_so_far(record) == f"best {sign * 0.9:.3f} (002 @1)"
    as_failed = [
        dataclasses.replace(trial, state="failed", points=()) if number in (1, 4) else
        dataclasses.replace(trial, points=trial.points[:1])
        for number, trial in enumerate(trials)
    ]  # fmt: skip
    asked = dataclasses.replace(asked, num_trials=7)
    assert next_order(asked, CONFIG, trials) == next_order(asked, CONFIG, as_failed)


def test_a_plan_is_the_same_after_json_and_another_one_is_told_by_what_differs():
    asked = plan(points=({TAU: 7.0},), held_out=("a", "b"))
    assert plan_from_json(json.loads(json.dumps(plan_to_json(asked)))) == asked
    assert plan_differences(asked, dataclasses.replace(asked, num_trials=50, repeat=3)) == []
    other = dataclasses.replace(asked, space=asked.space[1:], algorithm="sobol")
    assert plan_differences(asked, other) == [
        "space in model.head.tau", "algorithm tpe, now sobol",
    ]  # fmt: skip


def test_whatever_decides_what_a_search_proposes_or_stops_tells_two_searches_apart():
    asked = plan()
    others = {
        "space": asked.space[1:], "points": ({TAU: 7.0},), "budget_steps": 2, "evaluate_every": 2,
        "algorithm": "random", "scheduler": "none", "reduction": 4, "seed": 1, "metric": "loss",
        "mode": "min", "held_out": ("a",),
    }  # fmt: skip
    fields = {field.name for field in dataclasses.fields(SearchPlan)}
    assert fields - others.keys() == set(MAY_CHANGE)
    for name, value in others.items():
        assert len(plan_differences(asked, dataclasses.replace(asked, **{name: value}))) == 1, name


def test_more_points_than_trials_are_refused_with_the_number_that_fits():
    with pytest.raises(ConfigError, match="--trials 4 or more"):
        plan(num_trials=3, points=({TAU: 6.0}, {TAU: 7.0}, {TAU: 8.0}))
