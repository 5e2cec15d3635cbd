"""A train job on a Ray head of its own, seen from outside: its journal, its processes, its progress."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from pipeline.launch.local_cluster import LocalCluster
from pipeline.tracking.incidents import CLOSED
from pipeline.tracking.journal import START, Event, Metrics, Record, read_journal

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.02
WAIT_S = 900.0
RANK_TITLE = "RayTrainWorker"
SETTINGS: dict[str, object] = {
    "data.input_height": 64, "data.input_width": 128, "data.crop_height": 64, "data.crop_width": 128,
    "data.loader_workers": 0, "model.backbone.base_width": 8, "model.head.dim": 16, "train.batch_global": 8,
    "train.steps": 10_000_000, "train.metrics_every": 1, "train.checkpoint_every": 50,
    "train.evaluate_every": 10_000_000, "train.log_every_s": 5, "optim.warmup_steps": 10,
    "launch.use_gpu": "no", "launch.max_failures": 10_000, "tracking.registered_model": "",
}  # fmt: skip
"""A network of some ten milliseconds a step, checkpointed several times between two faults."""


class Training:
    """A running job; made by `running`."""

    def __init__(
        self, cluster: LocalCluster, process: subprocess.Popen[bytes], run_dir: Path, log: Path
    ) -> None:
        self._cluster, self._process, self._log = cluster, process, log
        self.run_dir = run_dir

    def records(self) -> list[Record]:
        """What the run's journal holds so far."""
        return read_journal(self.run_dir)

    def events(self, name: str) -> list[Event]:
        """The journal's events of that name."""
        return [record for record in self.records() if isinstance(record, Event) and record.name == name]

    def step(self) -> int:
        """The newest step that counts."""
        return max((record.step for record in self.records() if isinstance(record, Metrics)), default=0)

    def first_new_step_s(self, starts: int) -> float | None:
        """When the first step after the start number `starts` was recorded; None before that."""
        began = self.events(START)[starts:]
        times = [
            record.time_s
            for record in self.records()
            if began and isinstance(record, Metrics) and record.time_s >= began[0].time_s
        ]
        return min(times, default=None)

    def ended_after_s(self) -> float:
        """Seconds from the end of rank 0's `fit` until the driver had its result; waits for both.

        The driver removes Ray Train's folder as soon as it has.
        """
        self.wait_until(lambda: bool(self.events(CLOSED)))
        self.wait_until(lambda: not (self.run_dir / "log" / "ray").exists())
        return time.time() - self.events(CLOSED)[-1].time_s

    def ranks(self) -> list[psutil.Process]:
        """The processes of the ranks that are there now."""
        return [process for process in self._cluster.processes() if RANK_TITLE in " ".join(process.cmdline())]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something while the job lives; ends the benchmark with the job's own words otherwise."""
        give_up_s = time.monotonic() + WAIT_S
        while not condition():
            if self._process.poll() is not None or time.monotonic() > give_up_s:
                sys.exit(
                    f"the job ended, or nothing came for {WAIT_S:.0f} s:\n{self._log.read_text()[-2000:]}"
                )
            time.sleep(POLL_S)


@contextmanager
def running(shards: Path, settings: Mapping[str, object]) -> Iterator[Training]:
    """A job of two ranks on two CPUs, past its first steps; ended with its head when the context closes."""
    with LocalCluster(num_cpus=2) as cluster, tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "job.log"
        typed = [
            word for name, value in (SETTINGS | dict(settings)).items() for word in (f"--{name}", str(value))
        ]
        command = [sys.executable, "jobs/train_cityscapes.py", "--shards", str(shards), "--workers", "2"]
        command += ["--runs", folder, "--name", "recovery", *typed]
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
                env=cluster.environment | {"RAY_ADDRESS": cluster.address, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        training = Training(cluster, process, Path(folder) / "recovery", log)
        try:
            training.wait_until(lambda: training.step() > 0)
            yield training
        finally:
            process.kill()
            process.wait()


def make_shards(folder: Path, pictures: int) -> Path:
    """The mini city, drawn and packed below `folder`."""
    tree, shards = folder / "tree", folder / "shards"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    for command in (
        ["jobs/make_mini_city.py", "--out", str(tree), "--train", str(pictures), "--val", "4"],
        ["jobs/pack_cityscapes.py", "--root", str(tree), "--out", str(shards)],
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return shards
