"""Searches are held against each other by what they did, seed by seed and rank by rank."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.launch.tune_folder import TuneFolder
from pipeline.search.agenda import Order
from pipeline.search.records import Point, SearchRecord, Trial
from pipeline.tracking.journal import START, Journal

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SCORES = {0: (0.1, 0.2, 0.5), 1: (0.2, 0.3, 0.4), 2: (0.3, 0.1, 0.6), 3: (0.4, 0.4, 0.7)}
"""Trial → its scores at the steps 10, 30 and 90."""
STEPS = (10, 30, 90)


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def trial(number: int, scores: tuple[float, ...], state: str = "done", **fields: object) -> Trial:
    points = tuple(Point(step, score) for step, score in zip(STEPS, scores, strict=False))
    made = Trial(
        number, f"t{number}", {"model.head.tau": float(number)}, state=state, points=points,
        step=points[-1].step, train_s=10.0, whole_s=14.0,
    )  # fmt: skip
    return replace(made, **fields)


def record(*trials: Trial) -> SearchRecord:
    return SearchRecord("s", "val/miou", "max", (), {}, trials, rungs=(10, 30), budget_steps=90)


def searched(found: SearchRecord, wall_s: float = 100.0) -> Any:
    from searches.one_search import Searched

    return Searched(found, {"concurrent": 2, "best_trial": 0, "best_miou": 0.5}, wall_s, 0)


FULL = record(*(trial(number, scores) for number, scores in SCORES.items()))


def test_ranks_at_a_rung_are_held_against_those_at_the_end():
    """By hand: ranks 1 2 3 4 against 2 1 3 4 (1 - 6*2/60), and 2 3 1 4 against 2 1 3 4 (1 - 6*8/60)."""
    from searches.rows import agreement

    found = agreement(FULL, FULL)
    assert found["rank_agreement"] == {
        "10": {"spearman": 0.8, "kendall": pytest.approx(4 / 6, abs=1e-3)},
        "30": {"spearman": 0.2, "kendall": 0.0},
    }
    assert (found["same_winner"], found["regret_miou"], found["picked_rank_in_full"]) == (True, 0.0, 1)


def test_regret_is_what_the_picked_one_lacks_in_full():
    from searches.rows import agreement, search_row

    halved = record(
        trial(0, SCORES[0]), trial(1, SCORES[1][:1], "stopped", rungs=(10,)),
        trial(2, SCORES[2]), trial(3, SCORES[3][:2], "stopped", rungs=(10, 30)),
    )  # fmt: skip
    found = agreement(halved, FULL)
    assert (found["same_winner"], found["picked"], found["picked_rank_in_full"]) == (False, 2, 2)
    assert found["regret_miou"] == pytest.approx(0.1)
    row = search_row("asha", searched(halved))
    assert (row["stopped"], row["stopped_at"], row["steps"]) == (2, {"10": 1, "30": 1}, 90 + 10 + 90 + 30)


def test_overhead_of_a_trial_is_its_time_without_training_and_idle_time_is_of_all_places():
    from searches.rows import idle_s_per_trial, search_row

    found = searched(record(*(trial(n, (0.1, 0.2, 0.3)) for n in range(3))), wall_s=25.0)
    assert search_row("full", found)["overhead_s_per_trial"] == 4.0
    assert idle_s_per_trial(found) == pytest.approx((2 * 25.0 - 3 * 10.0) / 3)


def test_winner_is_compared_with_the_defaults_seed_by_seed():
    from searches.rows import winner_deltas

    repeats = [(0, 1, 0.50), (0, 2, 0.40), (2, 1, 0.55), (2, 2, 0.38)]
    again = [
        trial(4 + place, (0.0, 0.0, score), seed=seed, repeats=of)
        for place, (of, seed, score) in enumerate(repeats)
    ]
    number, deltas = winner_deltas(record(*FULL.trials, *again))
    assert (number, deltas) == (2, [pytest.approx(0.05), pytest.approx(-0.02)])
    assert winner_deltas(record(*FULL.trials, *again[:2])) == (0, [0.0, 0.0]), "the defaults won"


def test_same_trials_have_the_same_settings_under_the_same_numbers():
    from searches.rows import same_trials

    assert same_trials(FULL, record(*(replace(one, state="stopped") for one in FULL.trials)))
    assert not same_trials(FULL, record(*FULL.trials[:3]))
    other = replace(FULL.trials[3], settings={"model.head.tau": 3.5})
    assert not same_trials(FULL, record(*FULL.trials[:3], other))


def test_steps_that_were_done_again_are_executed_steps(tmp_path: Path):
    from searches.one_search import executed_steps

    folder = TuneFolder(tmp_path)
    folder.write_order(Order(0, "defaults", {}, 0))
    for attempt, (begin, end) in {"a1": (0, 25), "a2": (20, 40)}.items():
        journal = Journal(folder.trial_dir(0), attempt)
        journal.event(START, begin)
        journal.metrics(end, {"train/loss": 1.0})
        journal.close()
    assert executed_steps(folder) == 25 + 20
