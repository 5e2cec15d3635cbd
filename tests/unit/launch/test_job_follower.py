"""A job followed on a server that is slow, and on one that has gone."""

import json
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import WorldStateError
from pipeline.launch import job_follower
from pipeline.launch.job_follower import JobFollower

Answer = str | Exception
REFUSED = urllib.error.URLError("timed out")


class FakeCluster:
    """Answers in turn; the last answer is given for ever."""

    def __init__(self, log: Path, statuses: list[Answer], stops: list[Answer] | None = None) -> None:
        self.log, self.statuses, self.stops = log, statuses, stops or ["stopped"]
        self.asked_to_stop = 0
        self.lives = True

    def job_log(self, submission: str) -> Path:
        assert submission == "job"
        return self.log

    def head_lives(self) -> bool:
        return self.lives

    def call(self, method: str, path: str) -> Any:
        assert path == ("/api/jobs/job" if method == "GET" else "/api/jobs/job/stop")
        self.asked_to_stop += method == "POST"
        answers = self.statuses if method == "GET" else self.stops
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return {"status": answer}


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only the pauses between two polls move."""
    now = [0.0]
    monkeypatch.setattr(job_follower.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(job_follower.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    return now


@pytest.mark.parametrize(
    "error",
    [
        REFUSED,
        TimeoutError("slow"),
        ConnectionResetError("reset"),
        urllib.error.HTTPError("http://x", 500, "busy", None, None),  # type: ignore[arg-type]  # no headers
        json.JSONDecodeError("cut", "", 0),
    ],
)
def test_unanswered_question_is_asked_again(error: Exception, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('hello\nRESULT {"exit_code": 0}\n')
    shown: list[str] = []
    follower = JobFollower(FakeCluster(log, [error, "RUNNING", error, "SUCCEEDED"]), "job", shown.append)
    assert follower.follow(lambda: False) == "SUCCEEDED"
    assert shown == ["hello"]
    assert follower.result == {"exit_code": 0}


def test_stop_is_asked_for_until_it_was_answered_and_then_no_more(tmp_path: Path) -> None:
    statuses: list[Answer] = ["RUNNING"] * 6 + ["STOPPED"]
    cluster = FakeCluster(tmp_path / "log", statuses, [REFUSED, REFUSED, "stopped"])
    assert JobFollower(cluster, "job", print).follow(lambda: True) == "STOPPED"
    assert cluster.asked_to_stop == 3


def test_head_that_ended_is_noticed_at_once(tmp_path: Path, clock: list[float]) -> None:
    log = tmp_path / "log"
    log.write_text("its last words")
    shown: list[str] = []
    cluster = FakeCluster(log, [REFUSED])
    cluster.lives = False
    with pytest.raises(WorldStateError, match="Ray head ended while"):
        JobFollower(cluster, "job", shown.append).follow(lambda: False)
    assert shown == ["its last words"]
    assert clock[0] < 1


def test_silent_head_is_given_a_minute(tmp_path: Path, clock: list[float]) -> None:
    with pytest.raises(WorldStateError, match="gave no sign for 60s"):
        JobFollower(FakeCluster(tmp_path / "log", [REFUSED]), "job", print).follow(lambda: False)
    assert 60 <= clock[0] < 62
