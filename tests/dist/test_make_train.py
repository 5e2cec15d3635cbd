"""`make train` as a person runs it: from a tree to a registered model, stopped, and refused."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipeline.launch.job import read_result
from pipeline.tracking.journal import Event, Metrics, read_journal

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]


def started_by(pid: int) -> list[psutil.Process]:
    """What a process started, and what that did."""
    return psutil.Process(pid).children(recursive=True)


def still_alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    _gone, alive = psutil.wait_procs(processes, timeout=5)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


class MakeTrain:
    """What `make train` runs, in a process of its own."""

    def __init__(self, tree: Path, runs: Path, *more: str) -> None:
        self.output = runs.parent / "output"
        environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.launch.make_train", "--runs", str(runs),
                 "--cityscapes", str(tree), "--recipe", "", "--workers", "", "--", *more],
                # From anywhere: what is needed of the checkout is found beside the code.
                cwd=runs.parent, env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], bool]) -> None:
        give_up_s = time.monotonic() + 240
        while not condition():
            assert self.process.poll() is None, self.text
            assert time.monotonic() < give_up_s, self.text
            time.sleep(0.05)

    def result(self) -> dict[str, Any]:
        code = self.process.wait(240)
        result = read_result(self.text.splitlines()[-1:])
        assert result is not None, self.text
        assert result["exit_code"] == code
        return result

    def close(self) -> None:
        """End it, if a test did not, with all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            self.process.wait(240)


@pytest.fixture
def make_train(tmp_path: Path) -> Iterator[Callable[..., MakeTrain]]:
    """Runs `make train` of a tree with the runs folder of the test."""
    started: list[MakeTrain] = []

    def start(tree: Path, *more: str) -> MakeTrain:
        started.append(MakeTrain(tree, tmp_path / "runs", *more))
        return started[-1]

    yield start
    for run in started:
        run.close()


def test_tree_to_registered_model_and_the_printed_predict_command(
    make_train, city_tree, tiny, tmp_path: Path
) -> None:
    run = make_train(city_tree, *tiny, "--train.steps", "8", "--name", "whole")
    run.wait_for(lambda: "[train] " in run.text)
    processes = started_by(run.process.pid)
    assert len(processes) > 5
    result = run.result()
    assert result["status"] == "ok", run.text
    assert not still_alive(processes)
    assert result["model_uri"].startswith("models:/")
    shards = Path(result["shards"])
    assert shards.parent == tmp_path / "runs" / "shards"
    assert shards.name.startswith(f"{city_tree.name}-")
    assert run.text.count("[train] step 8/8") == 1, "each line once"
    assert "(RayTrainWorker" not in run.text

    assert "[next]  make ui" in run.text
    command = [line for line in run.text.splitlines() if "jobs/predict.py" in line][-1].removeprefix(
        "[next]  "
    )
    done = subprocess.run(shlex.split(command), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "runs" / "predictions").glob("*.png"))


def test_ctrl_c_checkpoints_and_leaves_no_process(make_train, city_tree, tiny, tmp_path: Path) -> None:
    run = make_train(city_tree, *tiny, "--train.steps", "100000", "--name", "stopped")
    run.wait_for(lambda: "[train] step " in run.text)
    processes = started_by(run.process.pid)
    os.killpg(run.process.pid, signal.SIGINT)
    result = run.result()
    assert (result["exit_code"], result["status"]) == (75, "preempted"), run.text
    assert list((tmp_path / "runs" / "stopped" / "checkpoints").glob("*/COMMIT.json"))
    assert "--name stopped" in run.text
    assert not still_alive(processes)


def the_driver(run: MakeTrain) -> psutil.Process:
    """The process of the submitted job, which runs the job's file itself and is no worker of Ray."""
    found = [p for p in started_by(run.process.pid) if "jobs/train_cityscapes.py" in p.cmdline()]
    return max(found, key=lambda process: process.create_time())


def the_head(run: MakeTrain) -> psutil.Process:
    """Ray's global store: `ray start` ends when it does."""
    return next(p for p in started_by(run.process.pid) if p.name() == "gcs_server")


def test_killed_driver_and_killed_head_are_noticed_and_training_goes_on_from_its_newest_checkpoint(
    make_train, city_tree, tiny, tmp_path: Path
) -> None:
    lasting = ["--train.steps", "600", "--train.checkpoint_every", "20", "--register", ""]
    lasting += ["--train.evaluate_every", "1000"]
    run = make_train(city_tree, *tiny, *lasting, "--name", "killed")
    run_dir = tmp_path / "runs" / "killed"

    def commits_since_the_start(number: int) -> int:
        records = [r for r in read_journal(run_dir) if isinstance(r, Event)]
        starts = [place for place, r in enumerate(records) if r.name == "start"]
        return sum(r.name == "commit" for r in records[starts[number] :]) if len(starts) == number + 1 else 0

    for number, victim in enumerate((the_driver, the_head)):
        run.wait_for(lambda number=number: commits_since_the_start(number) >= 2)
        processes = started_by(run.process.pid)
        victim(run).kill()
    result = run.result()
    assert (result["exit_code"], result["status"], result["step"]) == (0, "ok", 600), run.text
    causes = [incident["cause"] for incident in result["incidents"]]
    assert causes.count("driver lost") >= 1, "with its head it may note why itself"
    again = [line for line in run.text.splitlines() if "submitted again" in line]
    assert len(again) == 2, run.text
    for event, words in zip(again, ("driver died", "head ended"), strict=True):
        assert words in event
        assert re.search(r"on after \d+\.\ds$", event)
    assert not still_alive(processes)
    records = read_journal(run_dir)
    first, second, third = [r for r in records if isinstance(r, Event) and r.name == "start"]
    assert first.step == 0
    assert 20 <= second.step < third.step, "from a checkpoint: the newest due, or that of ranks told to go"
    curve = [r.step for r in records if isinstance(r, Metrics) and "train/loss" in r.values]
    assert curve == list(range(2, 601, 2)), "each point of the curve once, none missing"


@pytest.mark.parametrize(
    ("more", "words"),
    [(["--train.stesp", "2"], "did you mean train.steps?"), (["--recpie", "x"], "did you mean --recipe?")],
)
def test_wrong_words_are_one_line_before_anything_is_packed(
    make_train, city_tree, tmp_path: Path, more, words
) -> None:
    run = make_train(city_tree, *more)
    assert run.result()["exit_code"] == 2
    first, _ = run.text.splitlines()
    assert words in first
    assert not (tmp_path / "runs").exists()


def test_tree_that_cannot_be_packed_ends_with_the_pack_jobs_word(make_train, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    run = make_train(tmp_path / "tree")
    assert run.result()["exit_code"] == 2
    assert "Ray head" not in run.text
