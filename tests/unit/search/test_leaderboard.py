"""Who leads: what was measured at the full budget, repeats by their mean, ties to the defaults."""

from dataclasses import replace

import pytest

from pipeline.search.full_budget import full_scores
from pipeline.search.leaderboard import gain, leaderboard, winner
from pipeline.search.records import Point, SearchRecord, Trial
from pipeline.search.search_report import verdict


def trial(number: int, *scores: float, state: str = "done", repeats: int | None = None) -> Trial:
    points = tuple(Point(100 * (n + 1), score) for n, score in enumerate(scores))
    return Trial(number, f"t{number}", {}, state, points, (), 300, 100 * len(scores), repeats=repeats)  # type: ignore[arg-type]


def record(*trials: Trial, mode: str = "max") -> SearchRecord:
    return SearchRecord("s", "val/miou", mode, (), {}, trials, len(trials), 300)  # type: ignore[arg-type]


def numbers(board: SearchRecord) -> list[int]:
    return [standing.trial.number for standing in leaderboard(board)]


def test_whole_trainings_come_first_then_those_that_came_further_then_those_without_a_score() -> None:
    board = record(
        trial(0, 0.1, 0.2, 0.3), trial(1, 0.9, state="stopped"), trial(2, 0.1, 0.2, state="stopped"),
        trial(3, state="failed"), trial(4, 0.2, 0.3, 0.4),
    )  # fmt: skip
    assert numbers(board) == [4, 0, 2, 1, 3]
    assert [standing.rank for standing in leaderboard(board)] == [1, 2, 3, 4, 5]


def test_a_tie_goes_to_the_defaults() -> None:
    board = record(trial(0, 0.1, 0.2, 0.3), trial(1, 0.1, 0.2, 0.3))
    assert winner(board).trial.number == 0
    assert gain(board, winner(board)) == 0.0


def test_repeated_trials_are_judged_by_their_fresh_seeds_and_stand_before_a_single_lucky_one() -> None:
    board = record(
        trial(0, 0, 0, 0.50), trial(1, 0, 0, 0.60), trial(2, 0, 0, 0.66), trial(3, 0, 0, 0.57),
        trial(4, 0, 0, 0.40, repeats=1), trial(5, 0, 0, 0.44, repeats=1),
        trial(6, 0, 0, 0.56, repeats=2), trial(7, 0, 0, 0.60, repeats=2),
    )  # fmt: skip
    assert numbers(board) == [2, 1, 3, 0]
    best = winner(board)
    assert best.score == pytest.approx(0.58)
    assert best.seeds == 2
    assert best.spread == pytest.approx(0.04 / 2**0.5)
    assert gain(board, best) == pytest.approx(0.08)


def test_a_trial_whose_repeats_all_failed_does_not_lead_by_the_seed_that_chose_it() -> None:
    board = record(
        trial(0, 0, 0, 0.50), trial(1, 0, 0, 0.66),
        trial(2, state="failed", repeats=1), trial(3, 0.1, state="failed", repeats=1),
        trial(4, 0, 0, 0.51, repeats=0),
    )  # fmt: skip
    assert numbers(board) == [0, 1]
    assert "0.5100 over 1 fresh seed:" in verdict(board)
    assert [standing.is_repeated for standing in leaderboard(board)] == [True, False]
    assert "fresh" not in verdict(record(trial(0, 0, 0, 0.5), trial(1, state="running", repeats=0)))


def test_where_less_is_better_the_smallest_leads() -> None:
    board = record(trial(0, 3.0, 2.0, 1.0), trial(1, 3.0, 2.0, 0.5), mode="min")
    assert winner(board).trial.number == 1
    assert gain(board, winner(board)) == pytest.approx(0.5)


def test_nobody_wins_before_a_trial_was_trained_to_the_end() -> None:
    assert winner(record()) is None
    assert winner(record(trial(0, 0.9, state="stopped"), trial(1, state="failed"))) is None


def test_against_defaults_that_were_not_trained_to_the_end_there_is_no_gain() -> None:
    board = record(trial(0, 0.3, state="failed"), trial(1, 0, 0, 0.5))
    assert gain(board, winner(board)) is None


def test_a_stopped_trial_is_credited_with_what_the_others_gained_from_there() -> None:
    board = record(
        trial(0, 0.10, 0.20, 0.24), trial(1, 0.20, 0.26, 0.32), trial(2, 0.05, state="stopped"),
        trial(3, 0.10, 0.12, state="stopped"), trial(4, float("nan"), state="failed"),
        trial(5, 0.10, state="running"),
    )  # fmt: skip
    scores = full_scores(board)
    # From 100 to 200: 0.10, 0.06 and 0.02, on average 0.06; from 200 to 300: 0.04 and 0.06, so 0.05.
    assert scores[2].score == pytest.approx(0.05 + 0.06 + 0.05)
    assert scores[3].score == pytest.approx(0.12 + 0.05)
    assert scores[0].score == 0.24
    assert [scores[n].measured for n in (0, 1, 2, 3, 5)] == [True, True, False, False, False]
    assert 4 not in scores


def test_a_trial_that_ended_with_its_repeats_still_running_keeps_its_own_score() -> None:
    running = replace(trial(2, 0.1, state="running"), repeats=1)
    board = record(trial(0, 0, 0, 0.5), trial(1, 0, 0, 0.6), running)
    assert winner(board).score == 0.6
    assert winner(board).seeds == 1
    assert not winner(board).is_repeated, "none of its seeds is fresh"
