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
from pipeline.tracking.incidents import read_account
from pipeline.tracking.journal import Event, Metrics, read_attempts, read_journal
from pipeline.train.checkpoint import newest_checkpoint, step_of

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


def the_driver(run: MakeTrain) -> psutil.Process:
    """The process of the submitted job, which runs the job's file itself and is no worker of Ray."""
    found = [p for p in started_by(run.process.pid) if "jobs/train_cityscapes.py" in p.cmdline()]
    return max(found, key=lambda process: process.create_time())


def the_head(run: MakeTrain) -> psutil.Process:
    """Ray's global store: `ray start` ends when it does."""
    return next(p for p in started_by(run.process.pid) if p.name() == "gcs_server")


def causes_by_driver(run_dir: Path) -> list[list[str]]:
    """What the account must have of each driver but the last: failures that it noted, and its own loss.

    A driver whose head is gone may be quick enough to note that a rank is lost; it is lost if it never ended.
    """
    found = []
    for name, records in read_attempts(run_dir):
        if name.startswith("driver-"):
            noted = [record for record in records if isinstance(record, Event)]
            causes = [str(event.fields["lost"]) for event in noted if event.name == "failure"]
            found.append(causes + ["driver lost"] * (noted == [] or noted[-1].name != "job ended"))
    return found[:-1]


def test_killed_driver_and_killed_head_are_noticed_and_ctrl_c_checkpoints_and_leaves_no_process(
    make_train, city_tree, tiny, tmp_path: Path
) -> None:
    lasting = ["--train.steps", "100000", "--train.checkpoint_every", "20", "--register", ""]
    run = make_train(city_tree, *tiny, *lasting, "--train.evaluate_every", "100000", "--name", "killed")
    run_dir = tmp_path / "runs" / "killed"

    def starts() -> list[Event]:
        return [r for r in read_journal(run_dir) if isinstance(r, Event) and r.name == "start"]

    def wait_for_commits_since_start(number: int) -> None:
        def has_two() -> bool:
            records = [r for r in read_journal(run_dir) if isinstance(r, Event)]
            places = [place for place, r in enumerate(records) if r.name == "start"]
            return len(places) == number + 1 and sum(r.name == "commit" for r in records[places[-1] :]) >= 2

        run.wait_for(has_two)

    wait_for_commits_since_start(0)
    assert read_account(run_dir).incidents == ()
    processes = started_by(run.process.pid)
    the_driver(run).kill()

    wait_for_commits_since_start(1)
    (lost_driver,) = read_account(run_dir).incidents
    assert (lost_driver.cause, lost_driver.phase, lost_driver.step) == ("driver lost", None, starts()[1].step)
    assert lost_driver.recover_s is not None
    processes += started_by(run.process.pid)
    the_head(run).kill()

    wait_for_commits_since_start(2)
    first, *others = read_account(run_dir).incidents
    assert first == lost_driver
    of_driver, of_head = causes_by_driver(run_dir)
    assert of_driver == ["driver lost"]
    assert [incident.cause for incident in others] == of_head
    assert of_head, "the loss of the head is told, by whoever noticed it"
    told = [(event.step, event.fields["position"]) for event in starts()]
    assert told[0] == (0, 0)
    assert 20 <= told[1][0] < told[2][0], "from a checkpoint: the newest due, or that of ranks told to go"
    assert all(position == 4 * step for step, position in told)

    processes += started_by(run.process.pid)
    os.killpg(run.process.pid, signal.SIGINT)
    result = run.result()
    assert (result["exit_code"], result["status"]) == (75, "preempted"), run.text
    assert "--name killed" in run.text
    assert not still_alive(processes)
    newest = newest_checkpoint(run_dir)
    assert newest is not None
    assert step_of(newest) == result["step"] > told[2][0] + 20
    assert [incident["cause"] for incident in result["incidents"]] == ["driver lost", *of_head]
    again = [line for line in run.text.splitlines() if "submitted again" in line]
    assert len(again) == 2, run.text
    for event, words in zip(again, ("driver died", "head ended"), strict=True):
        assert words in event
        assert re.search(r"on after \d+\.\ds$", event)
    curve = [r.step for r in read_journal(run_dir) if isinstance(r, Metrics) and "train/loss" in r.values]
    assert curve == list(range(2, result["step"] + 1, 2)), "each point of the curve once, none missing"


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
