import errno
import logging
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import WorldStateError
from pipeline.launch import run_context
from pipeline.launch.log_follower import LogFollower
from pipeline.launch.run_context import JournaledContext, log_to_file, request_stop
from pipeline.launch.stop_signals import StopSignals
from pipeline.tracking.journal import Event, Metrics, Picture, Table, read_journal
from pipeline.train.context import RunContext
from pipeline.world import World


def test_rank_0_records_and_other_ranks_do_not(tmp_path: Path) -> None:
    contexts: list[JournaledContext] = [JournaledContext(tmp_path, World(rank, 2), "t") for rank in (0, 1)]
    for context in contexts:
        surroundings: RunContext = context
        surroundings.metrics(2, {"train/loss": 1.0 + context.world.rank})
        surroundings.event("commit", 2, checkpoint="c")
        surroundings.picture("p", 2, np.zeros((4, 4, 3), np.uint8))
        surroundings.table("t", 2, ["a"], [[1]])
        with surroundings.phase("step"):
            pass
        context.close()
    records = read_journal(tmp_path)
    assert [type(record) for record in records] == [Metrics, Event, Picture, Table, Event]
    assert records[0].values == {"train/loss": 1.0}  # type: ignore[union-attr]  # Metrics, as just checked
    assert len(list((tmp_path / "journal").iterdir())) == 1


def test_phases_add_up_even_when_the_phase_fails(tmp_path: Path) -> None:
    context = JournaledContext(tmp_path, World(), "t")
    with pytest.raises(ZeroDivisionError), context.phase("data"):
        1 / (time.sleep(0.02) or 0)
    with context.phase("data"):
        time.sleep(0.02)
    assert context.phase_s["data"] >= 0.04
    context.close()
    (event,) = read_journal(tmp_path)
    assert isinstance(event, Event)
    assert event.fields["seconds"]["data"] >= 0.04


def test_stop_reaches_all_ranks_of_its_attempt_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_context, "STOP_POLL_S", 0.0)
    ranks = [JournaledContext(tmp_path, World(rank, 2), "one") for rank in (0, 1)]
    later = JournaledContext(tmp_path, World(), "two")
    assert not any(context.stop_requested() for context in [*ranks, later])
    request_stop(tmp_path, "one")
    assert all(context.stop_requested() for context in ranks)
    assert not later.stop_requested()
    for context in [*ranks, later]:
        context.close()


def test_stop_that_a_disk_refuses_to_pass_on_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with pytest.raises(WorldStateError, match=r"cannot record in .*/log: .*; make room"):
        request_stop(tmp_path, "one")


def test_score_whose_records_a_disk_refuses_is_one_clear_line_and_pictures_may_be_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = JournaledContext(tmp_path, World(), "0001-a")
    context.picture("p", 2, np.zeros((4, 4, 3), np.uint8))
    shutil.rmtree(tmp_path / "pictures")
    context.mark("score", 2)

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refuse)
        with pytest.raises(
            WorldStateError, match=r"cannot record in .*/journal: No space left on device; make"
        ):
            context.mark("score", 2)
    context.close()


def test_own_signal_stops_without_a_file(tmp_path: Path) -> None:
    with StopSignals() as signals:
        context = JournaledContext(tmp_path, World(), "t", stop_wanted=signals.stop_wanted)
        assert not context.stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert context.stop_requested()
        context.close()


def test_second_signal_interrupts_once_and_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.stop_wanted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_followed_lines_appear_bare_once_and_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    begun: list[float] = []
    path = tmp_path / "log" / "a.log"
    caplog.set_level(logging.INFO, "pipeline.launch.log_follower")
    with LogFollower(path, lambda: begun.append(time.monotonic())):
        time.sleep(0.3)
        assert not begun
        path.parent.mkdir()
        with path.open("w", encoding="utf-8") as file:
            for piece in ("[train] ste", "p 1\n[train] step 2 …\n", "[val] x\nto"):
                file.write(piece)
                file.flush()
                time.sleep(0.25)
            file.write("rn")
    assert [record.getMessage() for record in caplog.records] == [
        "[train] step 1",
        "[train] step 2 …",
        "[val] x",
    ]
    assert len(begun) == 1


def test_only_rank_0_writes_log_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("pipeline.train.progress")
    log_to_file(tmp_path / "log" / "a.log")
    logger.info("[train] of rank 0")
    log_to_file(None)
    logger.info("[train] of rank 1")
    assert (tmp_path / "log" / "a.log").read_text() == "[train] of rank 0\n"
    assert "rank 1" not in capsys.readouterr().err
