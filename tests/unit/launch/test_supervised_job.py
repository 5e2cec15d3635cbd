"""Which ends of a job are followed by another submission, on a cluster that only pretends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import Preempted, WorldStateError
from pipeline.launch import job_follower, supervised_job
from pipeline.launch.supervised_job import RESUBMISSIONS, SupervisedJob, Supervisor

HEAD_DIES = "the head dies"


class Script:
    """How each submission ends: a status, and the lines of its log."""

    def __init__(self, folder: Path, *ends: tuple[str, list[str]]) -> None:
        self.folder, self.ends, self.submitted, self.did = folder, list(ends), [], []

    def cluster(self, **_: object) -> PretendedCluster:
        self.did.append("start")
        return PretendedCluster(self)


class PretendedCluster:
    def __init__(self, script: Script) -> None:
        self.script, self.folder = script, script.folder

    def __enter__(self) -> PretendedCluster:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, submission: str, code: Path, runtime_env: dict[str, Any], entrypoint: list[str]) -> None:
        self.script.did.append("submit")
        self.script.submitted.append((submission, entrypoint, runtime_env))
        self.job_log(submission).write_text("".join(line + "\n" for line in self.script.ends[0][1]))

    def submit_again(self, submission: str, earlier: str, runtime_env: dict[str, Any]) -> None:
        entrypoint = next(words for name, words, _ in self.script.submitted if name == earlier)
        self.submit(submission, self.folder, runtime_env, entrypoint)

    def call(self, method: str, path: str) -> dict[str, str]:
        if self.script.ends[0][0] == HEAD_DIES:
            raise OSError("refused")
        return {"status": self.script.ends[0][0]}

    def job_log(self, submission: str) -> Path:
        return self.folder / submission

    def head_lives(self) -> bool:
        return self.script.ends[0][0] != HEAD_DIES

    def processes(self) -> list[object]:
        return []

    def stop(self) -> None: ...

    def abandon(self) -> None:
        self.script.did.append("abandon")
        self.script.ends.pop(0)

    def end_jobs(self) -> None:
        self.script.did.append("end jobs")
        self.script.ends.pop(0)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_follower, "POLL_S", 0.0)


def result(code: int) -> str:
    return "RESULT " + json.dumps({"exit_code": code})


class Supervised:
    """A supervisor over a script; `steps` are the newest checkpoints' at the begin and at each death."""

    def __init__(self, monkeypatch, script: Script, steps=(0,), *, stop: bool = False) -> None:
        monkeypatch.setattr(supervised_job, "LocalCluster", script.cluster)
        left, self.shown = list(steps), []
        job = SupervisedJob(
            "mine", ["python", "x"], {"A": "b"}, 1, lambda folder: folder,
            lambda: left.pop(0) if len(left) > 1 else left[0],
        )  # fmt: skip
        self.run = Supervisor(job, self.shown.append, lambda: stop).run


DIED = ("FAILED", ["[train] step 2"])


def test_a_driver_that_dies_without_a_result_is_submitted_again_by_the_same_words(
    monkeypatch, tmp_path: Path
) -> None:
    script = Script(tmp_path, DIED, ("SUCCEEDED", ["hello", "[train] resumed", "[train] step 4", result(0)]))
    supervised = Supervised(monkeypatch, script)
    assert supervised.run() == {"exit_code": 0}
    assert script.did == ["start", "submit", "end jobs", "submit"], "the head is used again"
    (first, *words), (second, *again) = script.submitted
    assert first != second
    assert words == again
    before, hello, event, resumed, _ = supervised.shown
    assert (before, hello, resumed) == ("[train] step 2", "hello", "[train] resumed")
    assert event.startswith("[event] the job's driver died (FAILED) → submitted again, on after 0.")


def test_a_head_that_dies_gets_a_successor(monkeypatch, tmp_path: Path) -> None:
    script = Script(tmp_path, (HEAD_DIES, []), ("SUCCEEDED", ["[done] all", result(0)]))
    supervised = Supervised(monkeypatch, script)
    assert supervised.run() == {"exit_code": 0}
    assert script.did == ["start", "submit", "abandon", "start", "submit"]
    assert "the local Ray head ended while the job ran → submitted again" in supervised.shown[0]


@pytest.mark.parametrize("status", ["FAILED", HEAD_DIES])
@pytest.mark.parametrize("code", [0, 1, 2, 3, 75])
def test_what_a_job_said_by_its_result_is_final(monkeypatch, tmp_path: Path, code: int, status: str) -> None:
    script = Script(tmp_path, (status, [result(code)]))
    assert Supervised(monkeypatch, script).run() == {"exit_code": code}
    assert script.did == ["start", "submit"]


def test_deaths_without_progress_are_bounded_and_deaths_with_progress_are_not(
    monkeypatch, tmp_path: Path
) -> None:
    script = Script(tmp_path, *[DIED] * 9)
    with pytest.raises(WorldStateError, match=r"driver died \(FAILED\) without a RESULT line, 4 times"):
        Supervised(monkeypatch, script).run()
    assert len(script.submitted) == 1 + RESUBMISSIONS

    script = Script(tmp_path, *[DIED] * 9, ("SUCCEEDED", [result(0)]))
    assert Supervised(monkeypatch, script, steps=range(0, 100, 10)).run() == {"exit_code": 0}


@pytest.mark.parametrize(("status", "stop"), [("FAILED", True), ("STOPPED", False), (HEAD_DIES, True)])
def test_a_stop_is_followed_by_nothing(monkeypatch, tmp_path: Path, status: str, stop: bool) -> None:
    script = Script(tmp_path, (status, []))
    with pytest.raises(Preempted, match="type the same again to go on"):
        Supervised(monkeypatch, script, stop=stop).run()
    assert len(script.submitted) == 1
