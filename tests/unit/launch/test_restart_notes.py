"""What the driver records of a restart."""

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.errors import WorldStateError
from pipeline.launch.attempt_failure import LostError, note_failure, note_restart
from pipeline.launch.driver_journal import DriverJournal, driver_journal
from pipeline.launch.rank_watch import SeenOfAttempt
from pipeline.tracking.incidents import read_account
from pipeline.tracking.journal import COMMIT, START, Event, Journal, read_journal

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("restored", "repeated"), [(40, 4), (20, 24)])
def test_restart_is_noted_at_the_step_that_the_workers_restored(
    restored: int, repeated: int, tmp_path: Path
) -> None:
    driver, first = DriverJournal(tmp_path, "ab"), Journal(tmp_path, "a0")
    first.event(START, 0)
    for step in (20, 40):
        first.event(COMMIT, step, checkpoint=f"step_{step}")
    first.metrics(44, {"train/loss": 1.0})
    failure = note_failure(tmp_path, driver, "0001-ab", LostError("rank 1 lost", "step", 0.0), None)
    second = Journal(tmp_path, "a1")
    second.event(START, restored)  # 20 where the checkpoint of step 40 is damaged
    second.event(COMMIT, 60, checkpoint="step_60")
    note_restart(tmp_path, driver, failure)
    (noted,) = [r for r in read_journal(tmp_path) if isinstance(r, Event) and r.name == "restart"]
    assert (noted.step, noted.fields["repeated"], noted.fields["lost"]) == (restored, repeated, "rank 1 lost")
    driver.end()
    first.close()
    second.close()


def test_steps_that_no_curve_has_a_point_of_are_repeated_all_the_same(tmp_path: Path) -> None:
    driver, first = DriverJournal(tmp_path, "ab"), Journal(tmp_path, "0001-ab")
    first.event(START, 20)
    first.metrics(40, {"train/loss": 1.0})
    first.event(COMMIT, 40, checkpoint="step_40")
    seen = SeenOfAttempt({0: "step"}, steps=29, at_work_s=12.0)
    failure = note_failure(tmp_path, driver, "0001-ab", LostError("rank 1 hung", "step", 5.0, seen), None)
    second = Journal(tmp_path, "0002-ab")
    second.event(START, 40)
    note_restart(tmp_path, driver, failure)
    noted = {r.name: r.fields for r in read_journal(tmp_path) if isinstance(r, Event)}
    assert (noted["failure"]["reached"], noted["restart"]["repeated"]) == (49, 9)
    assert (noted["failure"]["attempt"], noted["failure"]["worked_s"]) == ("0001-ab", 7.0)
    for journal in (first, second):
        journal.close()
    driver.end()


def test_driver_that_ends_by_an_error_or_an_interrupt_is_not_lost_and_one_that_is_killed_is(
    tmp_path: Path,
) -> None:
    for token, error in (("aa", KeyboardInterrupt), ("bb", WorldStateError)):
        with suppress(error), driver_journal(tmp_path, token):
            begin(tmp_path, f"0001-{token}")
            raise error
    assert read_account(tmp_path).incidents == ()
    killed = (
        "import os, signal, sys; from pathlib import Path\n"
        "from pipeline.launch.driver_journal import driver_journal\n"
        "with driver_journal(Path(sys.argv[1]), 'cc'): os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert (
        subprocess.run([sys.executable, "-c", killed, str(tmp_path)], cwd=ROOT, check=False).returncode == -9
    )
    begin(tmp_path, "0003-cc")
    with driver_journal(tmp_path, "dd"):
        begin(tmp_path, "0004-dd")
        assert [incident.cause for incident in read_account(tmp_path).incidents] == ["driver lost"]


def begin(run_dir: Path, attempt: str) -> None:
    journal = Journal(run_dir, attempt)
    journal.event(START, 0)
    journal.close()


def test_disk_that_refuses_the_drivers_notes_costs_a_warning_and_not_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with driver_journal(tmp_path, "ab") as driver:
        monkeypatch.setattr(Journal, "append", refuse)
        note_failure(tmp_path, driver, "0001-ab", LostError("rank 1 lost", "step", 0.0), None)
    assert [r.getMessage() for r in caplog.records] == [
        "[event] failure is not recorded: No space left on device",
        "[event] job ended is not recorded: No space left on device",
    ]
    (tmp_path / "file").touch()
    with pytest.raises(WorldStateError, match=r"cannot record in .*; make room"):
        DriverJournal(tmp_path / "file", "ab")
