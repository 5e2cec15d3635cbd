"""What the harness says of kills that did not come, and of a history that cannot be."""

import os
import signal

import pytest

from tests.chaos.history import starts_between
from tests.chaos.kill import Kill
from tests.chaos.points import Strike
from tests.chaos.summary import not_struck, strikes, table

COMMITS = [2, 3, 4, 6, 8]


def row(launcher: str, phase: str, *, struck: bool) -> dict:
    strike = {"phase": phase}
    return {
        "launcher": launcher, "phase": phase, "moves": False, "wrong": [],
        "attempts": [{"strike": strike}, {"strike": None}], "struck": [strike] if struck else [],
    }  # fmt: skip


def test_a_phase_whose_planned_kill_did_not_come_is_told_apart_from_one_that_had_none() -> None:
    rows = [row("remote", "upload_files", struck=True), row("remote", "upload_commit", struck=False)]
    counted = strikes(rows)
    assert counted["remote"]["upload_files"] == {"planned": 1, "made": 1}
    missing, unplanned = not_struck(counted)
    assert missing == ["remote upload_commit"]
    assert "remote before_commit" in unplanned
    assert "| remote   | all            | 2 | 1 of 2 | 0 | 2 |" in list(table(rows))


@pytest.mark.parametrize(("passed", "comes"), [(0, False), (1, True)])
def test_the_end_of_a_phase_is_struck_only_where_the_phase_was_passed(
    passed: int, comes: bool, tmp_path, monkeypatch
) -> None:
    killed = []
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    kill = Kill([Strike("forward", 0, 0, 0.99)], tmp_path)
    kill.begin(1, 0)
    kill.count_down(10)
    for _ in range(passed):
        kill.place("forward", "a layer")
    kill.last_place("forward", "at its end")
    kill.place("forward", "a layer of the next step")
    assert killed == [(os.getpid(), signal.SIGKILL)] * comes


@pytest.mark.parametrize(
    ("strike", "expected"),
    [
        (Strike("write", 4, 0, 0.5), (3, 3)),
        (Strike("after_commit", 4, 0, 0.5), (4, 4)),
        (Strike("after_commit", 4, 0, 0.5, machine_gone=True), (3, 3)),
        (Strike("upload_commit", 2, 0, 0.4, machine_gone=True), (0, 0)),
        (Strike("upload_commit", 2, 0, 0.5, machine_gone=True), (2, 2)),
        (Strike("upload_files", 6, 0, 0.5), (6, 6)),
        (Strike("forward", 5, 0, 0.5), (3, 4)),
        (Strike("forward", 5, 1, 0.5), (3, 6)),
        (Strike("journal", 3, 0, 0.5), (0, 2)),
        (Strike("evaluate", 3, 0, 0.5), (0, 2)),
        (Strike("evaluate", 6, 0, 0.5), (4, 6)),
        (Strike("driver", 5, 0, 0.5), (3, 8)),
    ],
    ids=lambda value: str(value.phase) if isinstance(value, Strike) else None,
)
def test_an_attempt_begins_at_the_newest_checkpoint_that_a_kill_can_have_left(
    strike: Strike, expected: tuple[int, int]
) -> None:
    assert starts_between(strike, COMMITS) == expected
