"""Ranks that are told to go, and CPUs that go: the others train on, and the samples stay the plan's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.launch.local_cluster import LocalCluster
from pipeline.tracking.journal import Event, Metrics, Record, read_journal
from pipeline.train.checkpoint import newest_checkpoint
from tests.dist.ray_processes import train_workers

pytestmark = pytest.mark.cluster
LONG = ["--train.steps", "300", "--train.checkpoint_every", "20", "--train.evaluate_every", "300"]
LONG += ["--register", ""]


def events(run_dir: Path, name: str) -> list[Event]:
    return [r for r in read_journal(run_dir) if isinstance(r, Event) and r.name == name]


POINTS = list(range(2, 301, 2))
"""Steps of the curve of an undisturbed run: wherever another was stopped, it has the same."""


def curve(records: list[Record]) -> list[int]:
    return [r.step for r in records if isinstance(r, Metrics) and "train/loss" in r.values]


def test_rank_that_is_told_to_go_loses_no_step_and_the_job_goes_on_by_itself(
    start_job, ray_head: LocalCluster, tmp_path: Path
) -> None:
    run_dir = tmp_path / "runs" / "told"
    # No restart is allowed: one that was announced is no failure.
    job = start_job("--name", "told", "--workers", "2", *LONG, "--launch.max_failures", "0")
    job.wait_until(lambda: len(events(run_dir, "commit")) >= 1)
    os.kill(train_workers(ray_head)[-1].pid, signal.SIGTERM)
    result = job.result()
    assert (result["status"], result["step"], result["restarts"]) == ("ok", 300, 1), job.text
    assert "a rank was preempted → restarted in " in job.text
    assert ", 0 steps repeated" in job.text
    (stop,) = events(run_dir, "stop")
    first, second = events(run_dir, "start")
    assert first.step == 0
    assert (second.step, second.fields["position"]) == (stop.step, 4 * stop.step)
    assert curve(read_journal(run_dir)) == POINTS, "each point once, none missing"


TAKE_A_CPU = """
import ray, time
ray.init(log_to_driver=False)
@ray.remote(num_cpus=1)
class Holder:
    def holds(self):
        return True
holder = Holder.remote()
print("asked", flush=True)
ray.get(holder.holds.remote())
print("holds", flush=True)
time.sleep(1000)
"""


class Neighbour:
    """Somebody else's actor, which takes the cluster's next free CPU until it is closed."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_A_CPU], env=environment, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "asked\n"

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def take_a_cpu(ray_environment: dict[str, str]) -> Iterator[Callable[[], Neighbour]]:
    started: list[Neighbour] = []

    def take() -> Neighbour:
        started.append(Neighbour(ray_environment))
        return started[-1]

    yield take
    for neighbour in started:
        neighbour.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_job_goes_on_at_the_smaller_world_where_a_cpu_is_gone_with_its_rank(
    number: signal.Signals, start_job, take_a_cpu, ray_head: LocalCluster, tmp_path: Path
) -> None:
    run_dir = tmp_path / "runs" / "elastic"
    job = start_job("--name", "elastic", "--workers", "1:2", *LONG)
    job.wait_until(lambda: len(events(run_dir, "commit")) >= 1)
    assert [start.fields["world_size"] for start in events(run_dir, "start")] == [2]
    take_a_cpu()
    os.kill(train_workers(ray_head)[-1].pid, number)
    result = job.result()
    assert (result["status"], result["step"]) == ("ok", 300), job.text
    assert "room for 1 workers, before 2" in job.text
    starts = events(run_dir, "start")
    assert [start.fields["world_size"] for start in starts] == [2, 1]
    assert starts[1].fields["position"] == 4 * starts[1].step, "global batches of 4 samples all along"
    assert curve(read_journal(run_dir)) == POINTS, "each point once, none missing"
    newest = newest_checkpoint(run_dir)
    assert newest is not None
    train = json.loads((newest / "state.json").read_text())["config"]["train"]
    assert (train["batch_global"], train["accumulation"]) == (4, 2), "micro-batches of two samples stay"
    assert (", 0 steps repeated" in job.text) == (number == signal.SIGTERM)


def test_job_without_room_ends_with_75_and_its_rerun_goes_on_at_the_next_sample(
    start_job, take_a_cpu, ray_head: LocalCluster, tmp_path: Path
) -> None:
    run_dir = tmp_path / "runs" / "gone"
    words = ["--name", "gone", *LONG]
    job = start_job(*words, "--workers", "2", "--launch.workers_wait_s", "8")
    job.wait_until(lambda: len(events(run_dir, "commit")) >= 1)
    take_a_cpu()
    os.kill(train_workers(ray_head)[-1].pid, signal.SIGTERM)
    result = job.result()
    assert (result["status"], result["exit_code"]) == ("preempted", 75), job.text
    assert "no room for 2 workers within 8s" in job.text
    (stop,) = events(run_dir, "stop")
    rerun = start_job(*words, "--workers", "1:1").result()
    assert (rerun["status"], rerun["step"]) == ("ok", 300)
    assert events(run_dir, "start")[-1].step == stop.step, "at the next sample"
    assert curve(read_journal(run_dir)) == POINTS
