"""Of the attempts of a run only the newest one may write what counts."""

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import WorldStateError
from pipeline.launch import fence, run_context
from pipeline.launch.fence import SupersededError, begin_attempt, newest_token, refuse_superseded, token_of
from pipeline.launch.run_context import JournaledContext
from pipeline.tracking.journal import Journal, Metrics, read_journal
from pipeline.tracking.seal import seal_journals
from pipeline.world import World

ROOT = Path(__file__).resolve().parents[3]


def test_attempts_are_numbered_and_all_but_the_newest_are_refused(tmp_path: Path) -> None:
    assert newest_token(tmp_path) == 0
    names = [begin_attempt(tmp_path) for _ in range(11)]
    assert [token_of(name) for name in names] == list(range(1, 12))
    refuse_superseded(tmp_path, names[-1])
    for name in (*names[:-1], "a name without a number", "12345678"):
        with pytest.raises(WorldStateError, match=r"is over: attempt 0011 has begun since"):
            refuse_superseded(tmp_path, name)


def test_processes_that_begin_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from pipeline.launch.fence import begin_attempt\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for _ in range(40): print(begin_attempt(Path(sys.argv[1])))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    names = [name for process in processes for name in process.communicate("go\n", timeout=60)[0].split()]
    assert sorted(token_of(name) for name in names) == list(range(1, 121))
    assert newest_token(tmp_path) == 120


def test_a_number_that_was_handed_out_is_on_the_disk_and_is_not_handed_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(fence, "flush", synced.append)
    begin_attempt(tmp_path)
    assert synced == [tmp_path / "attempts", tmp_path, tmp_path.parent]
    monkeypatch.setattr(fence, "newest_token", lambda run_dir: 0)  # seen a moment too early
    assert token_of(begin_attempt(tmp_path)) == 2


def test_a_disk_that_refuses_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "attempts").touch()
    with pytest.raises(WorldStateError, match=r"no attempt begins in .*; make room or take another --runs"):
        begin_attempt(tmp_path)


def test_an_earlier_attempt_can_record_nothing_and_make_no_save(tmp_path: Path) -> None:
    old = JournaledContext(tmp_path, World(), begin_attempt(tmp_path))
    old.metrics(1, {"x": 1.0})
    name = begin_attempt(tmp_path)
    for refused in (
        lambda: old.metrics(2, {"x": 2.0}),
        lambda: old.event("stop", 2),
        lambda: old.table("t", 2, ["a"], [[1]]),
        lambda: old.mark("before_commit", 2),
        lambda: JournaledContext(tmp_path, World(), old.attempt),
    ):
        with pytest.raises(WorldStateError, match="is over"):
            refused()
    new = JournaledContext(tmp_path, World(), name)
    new.metrics(2, {"x": 3.0})
    old.close()
    new.close()
    points = [(r.step, r.values["x"]) for r in read_journal(tmp_path) if isinstance(r, Metrics)]
    assert points == [(1, 1.0), (2, 3.0)]


def test_a_record_that_was_stopped_between_its_check_and_its_write_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = JournaledContext(tmp_path, World(), begin_attempt(tmp_path))
    old.metrics(1, {"x": 1.0})
    begun: list[JournaledContext] = []

    def check_and_freeze(run_dir: Path, attempt: str) -> None:
        refuse_superseded(run_dir, attempt)
        if not begun:
            monkeypatch.undo()
            begun.append(JournaledContext(tmp_path, World(), begin_attempt(tmp_path)))
            begun[0].metrics(2, {"x": 3.0})

    monkeypatch.setattr(run_context, "refuse_superseded", check_and_freeze)
    old.metrics(2, {"x": 2.0})  # wakes up when the later attempt has recorded
    for context in (old, *begun):
        context.close()
    points = [(r.step, r.values["x"]) for r in read_journal(tmp_path) if isinstance(r, Metrics)]
    assert points == [(1, 1.0), (2, 3.0)]


def test_what_is_written_to_the_journal_of_an_attempt_that_was_sealed_does_not_count(tmp_path: Path) -> None:
    """However late: whoever has checked that it is the newest may still be about to write."""
    names = [begin_attempt(tmp_path) for _ in range(2)]
    old, driver = Journal(tmp_path, names[0]), Journal(tmp_path, "driver-ab12cd")
    old.metrics(1, {"x": 1.0})
    seal_journals(tmp_path, lambda attempt: 0 < token_of(attempt) < 2)
    before = read_journal(tmp_path)
    old.metrics(2, {"x": 2.0})
    assert read_journal(tmp_path) == before
    driver.event("failure", 1)
    assert len(read_journal(tmp_path)) == 2, "a driver outlives attempts"
    inode = old.path.stat().st_ino
    seal_journals(tmp_path, lambda attempt: 0 < token_of(attempt) < 2)
    assert old.path.stat().st_ino == inode, "sealed once"
    old.close()
    driver.close()


KILLED_WHILE_SEALING = """
import os, signal, sys
from pathlib import Path
from pipeline.tracking import seal
run_dir = Path(sys.argv[1])
if os.geteuid() == 0:  # root may open what is read-only
    os.setuid(65534)

def over(attempt):
    return attempt == "0001-ab"

for number in range(100):
    pid = os.fork()
    if pid == 0:
        left = number

        def kill(frame, event, argument):
            global left
            if frame.f_code.co_filename != seal.__file__:
                return None
            if event == "line":
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return kill

        sys.settrace(kill)
        seal.seal_journals(run_dir, over)
        os._exit(0)
    if os.waitpid(pid, 0)[1] == 0:
        break
    for path in (run_dir / "journal").glob("*.jsonl"):
        print(path.read_text(), end="")
print("sealed after", number, "kills")
"""


@pytest.fixture
def place_for_all() -> Iterator[Path]:
    """A folder that other users reach too, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_sealing_that_is_killed_at_any_instruction_is_done_by_the_next_attempt_of_any_user(
    place_for_all: Path,
) -> None:
    journal = Journal(place_for_all, "0001-ab")
    journal.metrics(1, {"x": 1.0})
    journal.close()
    content = journal.path.read_text()
    (place_for_all / "journal").chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_SEALING, str(place_for_all)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    kills = int(last.removeprefix("sealed after ").removesuffix(" kills"))
    assert kills >= 12
    assert lines == content.splitlines() * kills, "nobody ever sees less of it"
    (sealed,) = (place_for_all / "journal").iterdir()
    assert sealed.read_text() == content
    assert sealed.stat().st_mode & 0o222 == 0


def test_error_of_an_attempt_that_is_over_reaches_the_driver_with_its_number() -> None:
    error = pickle.loads(pickle.dumps(SupersededError("attempt 0002 is over", 3)))
    assert (str(error), error.newest, error.exit_code) == ("attempt 0002 is over", 3, 3)
