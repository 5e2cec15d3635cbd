"""Real processes that beat, stop and hang; and the end of them."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipeline.config import DeadlineConfig
from pipeline.launch import rank_watch
from pipeline.launch.pulse import FILE_BYTES, Beat, Doing, Place, Pulse, beat_file, read_beat, write_beat
from pipeline.launch.rank_watch import RankWatch, SeenOfAttempt, _end_processes
from pipeline.launch.stall import Stall

QUICK = DeadlineConfig(silence_s=1.5, start_s=20, data_s=30, step_s=3)
RANK = """
import sys, time
from pathlib import Path
import os, psutil
from pipeline.launch.pulse import Place, Pulse
pulse = Pulse(Path(sys.argv[1]), Place("node", os.getpid(), psutil.Process().create_time(), ""))
for _ in range(100_000):
    pulse.enter("data"); pulse.enter("step"); time.sleep(0.001)
    if Path(sys.argv[1] + ".hang").exists():
        time.sleep(60)
"""


@pytest.fixture
def rank(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", RANK, str(beat_file(tmp_path, "a", 0))])
    yield process
    process.kill()
    process.wait()


def until(look: Callable[[], Stall | None], condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert look() is None
        assert time.monotonic() < give_up_s
        time.sleep(0.1)


def settled(tmp_path: Path) -> Callable[[], bool]:
    def settles() -> bool:
        beat = read_beat(beat_file(tmp_path, "a", 0))
        return beat is not None and beat.steps > 10

    return settles


def first_stall(watch: RankWatch) -> Stall:
    give_up_s = time.monotonic() + 60
    while not (stall := watch.look()):
        assert time.monotonic() < give_up_s
        time.sleep(0.1)
    return stall


def test_stopped_process_is_noticed_as_silent_and_can_be_killed(tmp_path: Path, rank) -> None:
    patient_with_steps = replace(QUICK, step_s=300, data_s=300)
    watch = RankWatch(tmp_path, "a", 1, patient_with_steps)
    until(watch.look, settled(tmp_path))
    psutil.Process(rank.pid).suspend()
    stall = first_stall(watch)
    assert stall.silent
    assert stall.ranks == (0,)
    _end_processes(watch.places())
    assert rank.wait(10) == -9


def test_loop_that_stands_still_is_noticed_though_its_process_lives(tmp_path: Path, rank) -> None:
    watch = RankWatch(tmp_path, "a", 1, QUICK)
    until(watch.look, settled(tmp_path))
    Path(f"{beat_file(tmp_path, 'a', 0)}.hang").touch()
    stall = first_stall(watch)
    assert not stall.silent
    assert stall.doing == "step"


def test_process_that_was_given_the_id_of_a_rank_is_left_alone(rank) -> None:
    _end_processes([Place("node", rank.pid, psutil.Process(rank.pid).create_time() - 60, "")])
    time.sleep(0.2)
    assert rank.poll() is None


def test_driver_that_slept_has_seen_nobody_be_silent(tmp_path: Path, monkeypatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(rank_watch.time, "monotonic", lambda: now_s[0])
    pulse = Pulse(beat_file(tmp_path, "a", 0), Place("node", 1, 0.0, ""))
    for _ in range(5):
        pulse.enter("step")
    pulse._closing.set()  # as if stopped: no beat after the next
    pulse._thread.join()
    watch = RankWatch(tmp_path, "a", 1, QUICK)
    assert watch.look() is None
    now_s[0] = 3600.0
    assert watch.look() is None
    now_s[0] += 1.0
    assert watch.look() is not None


def test_what_was_seen_of_an_attempt_is_what_its_ranks_did_before_they_ended(
    tmp_path: Path, monkeypatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(rank_watch.time, "monotonic", lambda: now_s[0])
    watch = RankWatch(tmp_path, "a", 2, QUICK)
    place = Place("node", 1, 0.0, "")

    def look(at_s: float, *told: tuple[int, Doing]) -> SeenOfAttempt:
        now_s[0] = at_s
        for rank, (steps, doing) in enumerate(told):
            path = beat_file(tmp_path, "a", rank)
            path.touch()
            write_beat(
                path, Beat(place, ticks=int(10 * at_s), moves=int(10 * at_s), steps=steps, doing=doing)
            )
        assert watch.look() is None
        return watch.seen()

    assert look(0.5) == SeenOfAttempt({}, 0, 0.0)
    assert look(1.0, (0, "start"), (0, "start")) == SeenOfAttempt({0: "start", 1: "start"}, 0, 0.0)
    assert look(2.0, (1, "step"), (0, "data")) == SeenOfAttempt({0: "step", 1: "data"}, 0, 0.0)
    assert look(3.0, (7, "step"), (7, "data")) == SeenOfAttempt({0: "step", 1: "data"}, 7, 1.0)
    assert look(3.5, (8, "ended"), (8, "step")) == SeenOfAttempt({0: "step", 1: "step"}, 7, 1.5)


def test_beat_is_overwritten_in_place_and_says_at_last_that_the_rank_ended(tmp_path: Path) -> None:
    path = beat_file(tmp_path, "a", 3)
    pulse = Pulse(path, Place("node", 1, 0.0, ""))
    inode = path.stat().st_ino
    for phase in ("start", "data", "step", "data", "step"):
        pulse.enter(phase)  # type: ignore[arg-type]
    pulse.close()
    beat = read_beat(path)
    assert beat is not None
    assert (beat.moves, beat.steps, beat.doing) == (6, 2, "ended")
    assert (path.stat().st_ino, path.stat().st_size) == (inode, FILE_BYTES)


def test_torn_or_empty_beat_is_none(tmp_path: Path) -> None:
    path = tmp_path / "rank_0"
    assert read_beat(path) is None
    for content in (bytes(FILE_BYTES), b'{"place": {"node"', b"{}"):
        path.write_bytes(content)
        assert read_beat(path) is None
