"""A search by its own command on a Ray head, killed on its way where asked to, and what became of it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient

from pipeline.launch.job import read_result
from pipeline.launch.local_cluster import LocalCluster
from pipeline.launch.search_tracking import RECORD
from pipeline.launch.tune_folder import TuneFolder
from pipeline.search.records import SearchRecord, from_json
from pipeline.tracking.journal import COMMIT, START, Event, Metrics, read_attempts, read_journal

ROOT = Path(__file__).resolve().parents[2]
POLL_S, WAIT_S = 0.2, 1800.0
AT_WORK = ("RayTrainWorker", "TrainController", "ResourceTrainable")
"""Titles of what a trial is made of: ranks, Ray Train's controller, the trial's driver."""
OVER_BEFORE_KILL, RUNNING_AT_KILL = 3, 2


@dataclass(frozen=True)
class Searched:
    """A search that came to its end."""

    record: SearchRecord
    result: Mapping[str, Any]
    wall_s: float
    """Of its command, or its commands where it was killed; a kill's wait for the machine is in it."""
    executed_steps: int
    """Optimizer steps of all attempts of all trials, those that were done again too."""
    killed_while_running: tuple[int, ...] = ()
    """Trials that ran when the driver was killed."""


class SearchBench:
    """Searches on one head over one set of shards, each kept in the working folder once it is over."""

    def __init__(self, cluster: LocalCluster, shards: Path, work: Path, settings: Sequence[str]) -> None:
        self._cluster, self._work = cluster, work
        self._command = [sys.executable, "jobs/tune_cityscapes.py", "--shards", str(shards)]
        self._command += ["--runs", str(work / "runs"), *settings]

    def run(self, name: str, words: Sequence[str], part: str, kill: bool = False) -> Searched:
        """The search of that name; what was found of an earlier run of the same part where it is there.

        Ends the benchmark with the search's own words where it does not end well.
        """
        kept = self._work / f"{part}.json"
        folder = TuneFolder(self._work / "runs" / name)
        if not kept.exists():
            begin_s = time.monotonic()
            killed = self._killed(name, words, folder) if kill else ()
            result = self._finished(self._start(name, words), name)
            found = {
                "wall_s": time.monotonic() - begin_s,
                "result": result,
                "killed": killed,
                "executed_steps": executed_steps(folder),
                "record": json.loads((folder.path / RECORD).read_text()),
            }
            kept.write_text(json.dumps(found))
        found = json.loads(kept.read_text())
        return Searched(
            from_json(found["record"]), found["result"], found["wall_s"], found["executed_steps"],
            tuple(found["killed"]),
        )  # fmt: skip

    def left_over(self, timeout_s: float = 60.0) -> int:
        """Processes of trials that are there after all of them are over; Ray ends those of a job after it."""
        give_up_s = time.monotonic() + timeout_s
        while (number := len(self._at_work())) and time.monotonic() < give_up_s:
            time.sleep(POLL_S)
        return number

    def _killed(self, name: str, words: Sequence[str], folder: TuneFolder) -> tuple[int, ...]:
        """Starts the search and kills its driver while trials run; the numbers of those."""
        driver = self._start(name, words)

        def ready() -> bool:
            at_work = running(folder)
            over = len(folder.orders()) - len(at_work)
            return (
                over >= OVER_BEFORE_KILL
                and len(at_work) >= RUNNING_AT_KILL
                and any(has_committed(folder, number) for number in at_work)
            )

        self._wait_until(ready, driver, name)
        struck = tuple(running(folder))
        driver.kill()
        driver.wait()
        return struck

    def _start(self, name: str, words: Sequence[str]) -> subprocess.Popen[bytes]:
        environment = self._cluster.environment | {"RAY_ADDRESS": self._cluster.address}
        with self._log(name).open("ab") as file:
            return subprocess.Popen(
                [*self._command, "--name", name, *words], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, env=environment | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def _finished(self, driver: subprocess.Popen[bytes], name: str) -> dict[str, Any]:
        try:
            driver.wait(WAIT_S)
        finally:
            driver.kill()
        result = read_result(self._log(name).read_text().splitlines())
        if driver.returncode != 0 or result is None:
            sys.exit(f"search {name} failed:\n{self._log(name).read_text()[-3000:]}")
        return dict(result)

    def _wait_until(self, condition: Callable[[], bool], driver: subprocess.Popen[bytes], name: str) -> None:
        give_up_s = time.monotonic() + WAIT_S
        while not condition():
            if driver.poll() is not None or time.monotonic() > give_up_s:
                driver.kill()
                sys.exit(
                    f"search {name} could not be killed on its way:\n{self._log(name).read_text()[-3000:]}"
                )
            time.sleep(POLL_S)

    def _log(self, name: str) -> Path:
        return self._work / f"{name}.log"

    def _at_work(self) -> list[psutil.Process]:
        return [process for process in self._cluster.processes() if _title(process).startswith(tuple(
            f"ray::{title}" for title in AT_WORK
        ))]  # fmt: skip


def running(folder: TuneFolder) -> list[int]:
    """Trials that were begun and are not over."""
    return [order.number for order in folder.orders() if folder.ended(order.number) is None]


def has_committed(folder: TuneFolder, number: int) -> bool:
    """Whether a trial has a checkpoint."""
    records = read_journal(folder.trial_dir(number))
    return any(isinstance(record, Event) and record.name == COMMIT for record in records)


def executed_steps(folder: TuneFolder) -> int:
    """Optimizer steps of all attempts of all trials, those that were done again too."""
    total = 0
    for order in folder.orders():
        for _, records in read_attempts(folder.trial_dir(order.number)):
            starts = [r.step for r in records if isinstance(r, Event) and r.name == START]
            if starts:
                total += (
                    max((r.step for r in records if isinstance(r, Metrics)), default=starts[0]) - starts[0]
                )
    return total


def mlflow_runs(result: Mapping[str, Any], name: str) -> tuple[int, int]:
    """Runs in MLflow that have the search's name, and those below the one that RESULT names."""
    client = MlflowClient(result["tracking_uri"])
    experiment = client.get_run(result["parent_run_id"]).info.experiment_id
    below = f"tags.`mlflow.parentRunId` = '{result['parent_run_id']}'"
    parents = client.search_runs([experiment], f"tags.`mlflow.runName` = '{name}'")
    return len(parents), len(client.search_runs([experiment], below))


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
