"""A run that is killed, or stopped and taken for dead, at any point of a save ends as if nothing had been.

Real processes and real signals; the oracle is one undisturbed run.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.tracking.journal import Event, Metrics, Picture, Table, committed_step, read_journal
from pipeline.train import checkpoint
from pipeline.train.metrics import CHECKPOINT_STALL_S, VAL_MIOU

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
    "model.backbone.base_width": 8, "model.head.dim": 16, "train.batch_global": 4, "train.steps": 6,
    "train.evaluate_every": 2, "train.checkpoint_every": 2, "train.keep_last": 1,
    "train.precision": "float32",
    "train.metrics_every": 1, "train.ema_decay": 0.9, "train.pictures": 1,
}  # fmt: skip
TIMED = ("_per_s", "_s", "_s_per_sample", "wait_share")
"""Ends of the names of measured times, which no two runs have in common."""


class Attempts:
    """Talks to tests/dist/attempts.py."""

    program = "attempts.py"

    def __init__(self, log: Path, **environment: str) -> None:
        self.log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name(self.program))],
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip

    def __call__(self, **command: object) -> dict:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        assert self._process.wait(timeout=60) == 0
        self._process.stdout.close()


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attempts]:
    process = Attempts(tmp_path_factory.mktemp("log") / "err")
    yield process
    process.close()


@pytest.fixture(scope="module")
def case(shards: str) -> Callable[..., dict]:
    def make(run_dir: Path, **more: object) -> dict:
        return {"run_dir": str(run_dir), "shards": shards, "settings": SETTINGS} | more

    return make


@pytest.fixture(scope="module")
def undisturbed(
    attempts: Attempts, case: Callable[..., dict], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert attempts(run=case(run_dir))["exit"] == 0
    return run_dir


def state(run_dir: Path) -> dict[str, str]:
    """Digest of each file of tensors of the newest whole checkpoint, and the best one's."""
    newest, best = checkpoint.newest_checkpoint(run_dir), checkpoint.best_checkpoint(run_dir)
    assert newest is not None
    assert best is not None
    files = (checkpoint.WEIGHTS, checkpoint.AVERAGED, checkpoint.OPTIMIZER)
    found = {name: hashlib.sha256((newest / name).read_bytes()).hexdigest() for name in files}
    return found | {"best": hashlib.sha256((best / checkpoint.WEIGHTS).read_bytes()).hexdigest()}


def history(run_dir: Path) -> dict[tuple[str, int], float]:
    """Every untimed point of the journal, which must have each once."""
    records = read_journal(run_dir)
    points = [(k, r.step, v) for r in records if isinstance(r, Metrics) for k, v in r.values.items()]
    assert max(Counter((key, step) for key, step, _ in points).values()) == 1
    shown = Counter((r.key, r.step) for r in records if isinstance(r, Picture | Table))
    assert max(shown.values()) == 1
    return {(key, step): value for key, step, value in points if not key.endswith(TIMED)}


def assert_as_undisturbed(run_dir: Path, undisturbed: Path) -> None:
    assert state(run_dir) == state(undisturbed)
    assert history(run_dir) == history(undisturbed)
    kept = {path.name[:13] for path in (undisturbed / "checkpoints").iterdir()}
    assert {path.name[:13] for path in (run_dir / "checkpoints").iterdir()} == kept
    records = read_journal(run_dir)
    assert committed_step(records) == 6
    stalls = [r.step for r in records if isinstance(r, Metrics) and CHECKPOINT_STALL_S in r.values]
    assert stalls == [2, 4, 6]


POINTS = [
    ("snapshot", 2), ("write", 2), ("before_commit", 4), ("before_commit, checked", 4), ("rename", 4),
    ("after_commit", 4), ("after_commit, checked", 4), ("prune", 6), ("evaluate", 4),
    ("evaluation recorded", 4), ("score", 4), ("score, checked", 4), ("score, checked", 6), ("finish", 6),
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS, ids=lambda point: f"{point[0]}@{point[1]}".replace(" ", "-"))
def test_killed_at_any_point_of_a_save_it_ends_bit_for_bit_with_one_point_a_step(
    point: tuple[str, int], attempts: Attempts, case: Callable[..., dict], undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    killed = attempts(run=case(run_dir, at=point, signal=signal.SIGKILL))
    assert killed["signal"] == signal.SIGKILL
    assert attempts(run=case(run_dir))["exit"] == 0
    assert_as_undisturbed(run_dir, undisturbed)


def test_a_kill_in_an_evaluation_costs_no_step(
    attempts: Attempts, case: Callable[..., dict], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    at = ("evaluation recorded, weights committed", 4)
    assert attempts(run=case(run_dir, at=at, signal=signal.SIGKILL))["signal"] == signal.SIGKILL
    newest = checkpoint.newest_checkpoint(run_dir)
    assert newest is not None
    assert checkpoint.step_of(newest) == 4
    assert attempts(run=case(run_dir))["exit"] == 0
    starts = [r.step for r in read_journal(run_dir) if isinstance(r, Event) and r.name == "start"]
    assert starts == [0, 4]


def counted(run_dir: Path) -> dict[str, object]:
    """All of a run that anybody reads, but for the log: journals as they are read, files as they are."""
    files = [path for path in run_dir.rglob("*") if path.is_file() and path.parent.name != "journal"]
    content: dict[str, object] = {str(path): path.read_bytes() for path in files if path.suffix != ".tmp"}
    return content | {"journal": read_journal(run_dir)}


@pytest.mark.parametrize(
    "point",
    [
        ("snapshot", 4), ("write", 4), ("before_commit", 4), ("before_commit, checked", 4), ("rename", 4),
        ("after_commit, checked", 4), ("prune", 6), ("evaluation recorded", 4), ("score", 4),
    ],
    ids=lambda point: f"{point[0]}@{point[1]}".replace(" ", "-"),
)  # fmt: skip
def test_nothing_of_a_rank_that_wakes_up_when_a_later_attempt_has_begun_counts(
    point: tuple[str, int], attempts: Attempts, case: Callable[..., dict], undisturbed: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    zombie = attempts(run=case(run_dir, at=point, signal=signal.SIGSTOP))
    assert zombie["stopped"]
    assert attempts(run=case(run_dir))["exit"] == 0
    before = counted(run_dir)
    woken = attempts(go_on=zombie["pid"])
    assert woken["exit"] == 3
    said = attempts.log.read_text().splitlines()[-1]
    assert "of run run is over: attempt 0002 has begun since" in said or "cleared away while it was" in said
    assert counted(run_dir) == before
    assert_as_undisturbed(run_dir, undisturbed)


def test_a_clock_that_is_an_hour_off_in_one_attempt_changes_nothing(
    attempts: Attempts, case: Callable[..., dict], undisturbed: Path, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import time\nreal, real_ns = time.time, time.time_ns\n"
        "time.time = lambda: real() + 3600\ntime.time_ns = lambda: real_ns() + 3600 * 10**9\n"
    )
    fast = Attempts(tmp_path / "err", PYTHONPATH=f"{tmp_path}:{ROOT}")
    run_dir = tmp_path / "run"
    assert fast(run=case(run_dir, at=("score", 2), signal=signal.SIGKILL))["signal"] == signal.SIGKILL
    assert attempts(run=case(run_dir, at=("write", 4), signal=signal.SIGKILL))["signal"] == signal.SIGKILL
    assert fast(run=case(run_dir))["exit"] == 0
    fast.close()
    assert_as_undisturbed(run_dir, undisturbed)
    starts = [r for r in read_journal(run_dir) if isinstance(r, Event) and r.name == "start"]
    assert [r.step for r in starts] == [0, 2, 2]
    assert starts[0].time_s > starts[1].time_s + 3000, "the clock really was off"


def test_a_score_is_recorded_once_where_its_evaluation_was_repeated(
    attempts: Attempts, case: Callable[..., dict], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    attempts(run=case(run_dir, at=("score", 4), signal=signal.SIGKILL))
    recorded = [r for r in read_journal(run_dir) if isinstance(r, Metrics) and VAL_MIOU in r.values]
    assert [r.step for r in recorded] == [2, 4], "recorded, but not yet attached"
    assert checkpoint.read_score(checkpoint.list_committed(run_dir)[0]) is None
    assert attempts(run=case(run_dir))["exit"] == 0
    recorded = [r for r in read_journal(run_dir) if isinstance(r, Metrics) and VAL_MIOU in r.values]
    assert [r.step for r in recorded] == [2, 4, 6]
