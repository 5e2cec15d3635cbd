"""What is left of clusters whose owner was killed, with plain processes in the place of Ray's."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline.launch.cluster_processes import MARK, OWNER, end_stale_clusters, record_owner

Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a marked process in a session of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def sleeper(mark: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "print(flush=True); import time; time.sleep(60)"]
        process = subprocess.Popen(
            command, env=os.environ | {MARK: mark}, stdout=subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        started.append(process)
        return process

    yield sleeper
    for process in started:
        process.kill()
        process.communicate()


def cluster(temp: Path, mark: str, head: int, **owner: object) -> Path:
    """The folder of a cluster whose owner is this process, or as `owner` has it."""
    folder = temp / f"ccs-{mark}"
    folder.mkdir()
    record_owner(folder, mark, head)
    recorded = json.loads((folder / OWNER).read_text())
    (folder / OWNER).write_text(json.dumps(recorded | owner))
    return folder


DEAD = {"started_s": 1.0}
"""The owner's number was given to another process since."""


def test_cluster_of_a_dead_owner_is_ended_and_removed(tmp_path: Path, start: Start) -> None:
    head = start("stale")
    folder = cluster(tmp_path, "stale", head.pid, **DEAD)
    end_stale_clusters(tmp_path)
    head.wait(10)
    assert not psutil.pid_exists(head.pid)
    assert not folder.exists()


def test_cluster_of_a_living_owner_or_of_another_machine_stays(tmp_path: Path, start: Start) -> None:
    mine, elsewhere = start("mine"), start("elsewhere")
    folders = [
        cluster(tmp_path, "mine", mine.pid),
        cluster(tmp_path, "elsewhere", elsewhere.pid, place=["another", "pid:[1]"], **DEAD),
    ]
    end_stale_clusters(tmp_path)
    assert all(folder.exists() for folder in folders)
    assert mine.poll() is elsewhere.poll() is None


def test_job_that_still_runs_is_let_finish(tmp_path: Path, start: Start) -> None:
    head, job = start("busy"), start("busy")
    folder = cluster(tmp_path, "busy", head.pid, **DEAD)
    end_stale_clusters(tmp_path)
    assert head.poll() is job.poll() is None
    job.kill()
    job.wait()
    end_stale_clusters(tmp_path)
    head.wait(10)
    assert not psutil.pid_exists(head.pid)
    assert not folder.exists()


def test_session_whose_number_was_given_to_a_stranger_is_left_alone(tmp_path: Path, start: Start) -> None:
    stranger = start("stranger")
    folder = cluster(tmp_path, "gone", stranger.pid, **DEAD)
    end_stale_clusters(tmp_path)
    assert psutil.pid_exists(stranger.pid)
    assert stranger.poll() is None
    assert not folder.exists()


def test_folder_that_says_nothing_readable_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ccs-x").mkdir()
    (tmp_path / "ccs-x" / OWNER).write_text("{")
    end_stale_clusters(tmp_path)
    assert (tmp_path / "ccs-x" / OWNER).exists()
