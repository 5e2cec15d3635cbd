"""A train job on a Ray head of its own, seen from outside: its journal, its processes, its progress."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from pipeline.launch.local_cluster import LocalCluster
from pipeline.tracking.incidents import CLOSED
from pipeline.tracking.journal import START, Event, Metrics, Record, read_journal

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.1
RUN_NAME, LOG = "recovery", "job.log"
WAIT_S = 900.0
RANK_TITLE, DRIVER_FILE, HEAD = "RayTrainWorker", "jobs/train_cityscapes.py", "gcs_server"
"""How a rank, the driver and Ray's global store are known among processes."""
RAY_PROCESSES = (HEAD, "raylet/raylet", "dashboard/dashboard.py", "dashboard/agent.py")
SETTINGS: dict[str, object] = {
    "data.input_height": 64, "data.input_width": 128, "data.crop_height": 64, "data.crop_width": 128,
    "data.loader_workers": 0, "model.backbone.base_width": 8, "model.head.dim": 16, "train.batch_global": 8,
    "train.steps": 10_000_000, "train.metrics_every": 5, "train.checkpoint_every": 50,
    "train.evaluate_every": 10_000_000, "train.log_every_s": 5, "optim.warmup_steps": 10,
    "launch.use_gpu": "no", "launch.max_failures": 10_000, "tracking.registered_model": "",
}  # fmt: skip
"""A network of some ten milliseconds a step, checkpointed several times between two faults. A point every few
steps: the whole journal is read again and again."""


class Training:
    """A running job; made by `running` or `supervised`."""

    def __init__(
        self,
        processes: Callable[[], list[psutil.Process]],
        job: subprocess.Popen[bytes],
        run_dir: Path,
        log: Path,
    ) -> None:
        self._processes, self._process, self._log = processes, job, log
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
        return self._named(RANK_TITLE)

    def driver(self) -> psutil.Process:
        """The process of the job itself, under `make train`: the newest that runs its file."""
        return max(self._named(DRIVER_FILE), key=lambda process: process.create_time())

    def head(self) -> psutil.Process:
        """Ray's global store, with which a head ends."""
        return self._named(HEAD)[-1]

    def memory_mb(self) -> dict[str, float]:
        """Resident megabytes of what lives through restarts: the job's driver, and Ray's own processes."""
        ray = [process for name in RAY_PROCESSES for process in self._named(name)]
        driver = psutil.Process(self._process.pid).memory_info().rss
        return {
            "driver_mb": round(driver / 2**20, 1),
            "ray_mb": round(sum(process.memory_info().rss for process in ray) / 2**20, 1),
        }

    def _named(self, part: str) -> list[psutil.Process]:
        found = []
        for process in self._processes():
            with suppress(psutil.Error):  # it ended while we looked
                if part in " ".join([process.name(), *process.cmdline()]):
                    found.append(process)
        return found

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
        command = [sys.executable, DRIVER_FILE, "--shards", str(shards), "--workers", "2", "--runs", folder]
        environment = cluster.environment | {"RAY_ADDRESS": cluster.address}
        process = _started([*command, *_typed(settings)], environment, Path(folder))
        try:
            yield _settled(Training(cluster.processes, process, Path(folder) / RUN_NAME, Path(folder) / LOG))
        finally:
            process.kill()
            process.wait()


@contextmanager
def supervised(tree: Path, settings: Mapping[str, object]) -> Iterator[Training]:
    """The same by `make train`'s own command, which watches over job and head; stopped at the end."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pipeline.launch.make_train", "--runs", folder]
        command += ["--cityscapes", str(tree), "--recipe", "", "--workers", "2", "--", *_typed(settings)]
        process = _started(command, environment, Path(folder))

        def processes() -> list[psutil.Process]:
            return psutil.Process(process.pid).children(recursive=True)

        try:
            yield _settled(Training(processes, process, Path(folder) / RUN_NAME, Path(folder) / LOG))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(WAIT_S)


def _typed(settings: Mapping[str, object]) -> list[str]:
    pairs = [(f"--{name}", str(value)) for name, value in (SETTINGS | dict(settings)).items()]
    return ["--name", RUN_NAME, *(word for pair in pairs for word in pair)]


def _started(command: list[str], environment: Mapping[str, str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / LOG).open("wb") as file:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=file, stdin=subprocess.DEVNULL, start_new_session=True,
            env=dict(environment) | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip


def _settled(training: Training) -> Training:
    """The training, once it makes steps."""
    training.wait_until(lambda: training.step() > 0)
    return training


def make_shards(folder: Path, pictures: int) -> Path:
    """The mini city, drawn in `folder`/tree and packed beside it."""
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
