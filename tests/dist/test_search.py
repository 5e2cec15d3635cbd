"""A search on real Ray: many stopped trials, killed processes, a stop; nothing left over."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.launch.tune_folder import TuneFolder
from pipeline.tracking.journal import Event, Metrics, read_attempts, read_journal
from tests.dist.ray_processes import titled

pytestmark = pytest.mark.cluster
EVERY = 5
TRIAL_DRIVER = "ResourceTrainable"
"""What Ray titles the process of a trial's driver."""
SPACE = ["--search.model.head.lambda_coarse", "off", "--search.optim.lr", "log:0.00001:0.01"]


def words(name: str, trials: int, steps: int, *more: str) -> list[str]:
    schedule = ["--train.steps", str(steps), "--train.evaluate_every", str(EVERY)]
    schedule += ["--train.checkpoint_every", str(EVERY)]
    halving = [] if "--scheduler" in more else ["--reduction", "2"]
    return ["--name", name, "--trials", str(trials), *halving, *SPACE, *schedule, *more]


def wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Ray ends the processes of a job after the job."""
    give_up_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_s, f"waited {timeout_s} s in vain"
        time.sleep(0.2)


def executed_steps(run_dir: Path) -> int:
    """Steps of all attempts, those that were done again too."""
    total = 0
    for _, records in read_attempts(run_dir):
        starts = [record.step for record in records if isinstance(record, Event) and record.name == "start"]
        if starts:
            total += max((r.step for r in records if isinstance(r, Metrics)), default=starts[0]) - starts[0]
    return total


def test_trials_of_which_many_are_stopped_run_on_two_cpus_and_leave_nothing(
    start_job, ray_head, tmp_path: Path
) -> None:
    """Each trial takes a CPU of two: one placement group that leaked would halve them, two would hang it."""
    search = start_job(*words("s", 8, 40), job="tune")
    result = search.result(400)
    assert result["status"] == "ok", search.text
    assert (result["trials"], result["concurrent"], result["failed"]) == (8, 2, 0)
    assert result["stopped"] >= 3
    folder = TuneFolder(tmp_path / "runs" / "s")
    for number in range(8):
        ended = folder.ended(number)
        assert ended is not None
        decisions = folder.decisions(number)
        steps = [decision.step for decision in decisions]
        if ended.state == "stopped":
            assert steps == [5, 10, 20][: len(steps)]
            assert [decision.passes for decision in decisions] == [True] * (len(steps) - 1) + [False]
            assert f"[trial] {number:03d} stopped at step {ended.step}/40" in search.text
        else:
            assert (ended.state, ended.step) == ("done", 40)
            assert steps == ([] if number == 0 else [5, 10, 20])
    for titles in ("RayTrainWorker", "TrainController", TRIAL_DRIVER):
        wait_until(lambda titles=titles: not titled(ray_head, titles))

    client = MlflowClient(result["tracking_uri"])
    parent = client.get_run(result["parent_run_id"])
    assert parent.info.status == "FINISHED"
    below = f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    children = client.search_runs([parent.info.experiment_id], below)
    assert sorted(child.data.tags["search.trial"] for child in children) == [f"{n:03d}" for n in range(8)]
    assert {child.info.status for child in children} == {"FINISHED"}
    assert Path(result["report"]).stat().st_size > 10_000

    again = start_job(*words("s", 8, 40), job="tune")
    repeated = again.result()
    assert "is finished already" in again.text
    assert (repeated["best"], repeated["best_miou"]) == (result["best"], result["best_miou"])
    crowd = start_job(*words("t", 8, 40, "--concurrent", "3"), job="tune")
    assert crowd.result()["exit_code"] == 2
    assert "--concurrent 2 fits" in crowd.text


def test_a_search_whose_processes_are_killed_one_after_the_other_trains_each_trial_once(
    start_job, ray_head, tmp_path: Path
) -> None:
    """The ideal is every trial's steps once; each death may cost each running trial one interval."""
    typed = words("k", 4, 60, "--scheduler", "none")
    folder = TuneFolder(tmp_path / "runs" / "k")

    def committed(number: int) -> int:
        return sum(
            isinstance(record, Event) and record.name == "commit"
            for record in read_journal(folder.trial_dir(number))
        )

    first = start_job(*typed, job="tune")
    first.wait_until(lambda: committed(0) >= 2 and committed(1) >= 2, 200)
    first.process.kill()
    first.process.wait()
    settings = [json.loads((folder.trial_dir(n) / "trial.json").read_text()) for n in (0, 1)]

    second = start_job(*typed, job="tune")
    second.wait_until(
        lambda: max(committed(0), committed(1)) >= 5 and len(titled(ray_head, TRIAL_DRIVER)) == 2, 200
    )
    titled(ray_head, TRIAL_DRIVER)[0].kill()
    second.wait_until(lambda: committed(0) >= 8 and committed(1) >= 8, 200)
    second.process.send_signal(signal.SIGTERM)
    stopped = second.result()
    assert (stopped["exit_code"], stopped["status"]) == (75, "preempted"), second.text
    assert "--name k to go on" in second.text

    third = start_job(*typed, job="tune")
    result = third.result(300)
    assert result["status"] == "ok", third.text
    assert (result["trials"], result["failed"]) == (4, 0)
    assert settings == [json.loads((folder.trial_dir(n) / "trial.json").read_text()) for n in (0, 1)]
    for number in range(4):
        records = read_journal(folder.trial_dir(number))
        scored = [r.step for r in records if isinstance(r, Metrics) and "val/miou" in r.values]
        assert scored == list(range(EVERY, 61, EVERY)), "each score once"
        assert executed_steps(folder.trial_dir(number)) <= 60 + 2 * EVERY
