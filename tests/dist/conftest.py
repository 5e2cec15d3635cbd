"""Tiny packed data sets and a private Ray head, each made once for all tests that need them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.config import StoreConfig
from pipeline.data.packing.pack import pack_cityscapes
from pipeline.launch.local_cluster import LocalCluster
from tests.dist.ray_processes import titled
from tests.dist.remote_city import pack_served
from tests.rclone_server import serving

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {7: (90, 90, 90), 23: (200, 160, 90), 11: (60, 60, 120), 26: (10, 10, 200)}
"""Label id → BGR: road, sky, building, car."""


def draw_tree(root: Path, counts: dict[str, int], height: int = 48, width: int = 96) -> None:
    """A tree in Cityscapes' layout whose classes a tiny network can tell by colour."""
    random = np.random.default_rng(0)
    for split, count in counts.items():
        for index in range(count):
            label = np.full((height, width), 7, np.uint8)
            label[: height // 3] = 23
            label[height // 3 : height // 2, : width // 2] = 11
            left = int(random.integers(0, width - 20))
            label[height // 2 : height // 2 + 10, left : left + 20] = 26
            image = np.zeros((height, width, 3), np.float64)
            for label_id, colour in COLOURS.items():
                image[label == label_id] = colour
            image = np.clip(image + random.normal(0, 8, image.shape), 0, 255)
            city = f"{split}ville"
            for kind, suffix, pixels in (
                ("leftImg8bit", "leftImg8bit", image.astype(np.uint8)),
                ("gtFine", "gtFine_labelIds", label),
            ):
                folder = root / kind / split / city
                folder.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(folder / f"{city}_{index:06d}_000019_{suffix}.png"), pixels)


@pytest.fixture(scope="session")
def city_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree") / "city"
    draw_tree(root, {"train": 12, "val": 5})
    return root


@pytest.fixture(scope="session")
def city_shards(city_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "city"
    pack_cityscapes(str(city_tree), str(out), ("train", "val"))
    return out


@pytest.fixture(scope="session")
def ray_head() -> Iterator[LocalCluster]:
    """A Ray head with room for two workers; its environment is what a job needs to join it."""
    with LocalCluster(num_cpus=2) as cluster:
        yield cluster
    assert not cluster.processes()


@pytest.fixture(scope="session")
def ray_environment(ray_head: LocalCluster) -> dict[str, str]:
    """The environment of a job that joins the head."""
    inherited = {k: v for k, v in ray_head.environment.items() if k != "MLFLOW_TRACKING_URI"}
    return inherited | {
        "RAY_ADDRESS": ray_head.address,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }


TINY = shlex.split(
    "--data.input_height 32 --data.input_width 64 --data.crop_height 32 --data.crop_width 64 "
    "--model.backbone.base_width 8 --model.head.dim 16 --optim.warmup_steps 2 --train.batch_global 4 "
    "--train.metrics_every 2 --train.pictures 1 --train.log_every_s 1 --launch.use_gpu no"
)
"""Settings of a network that takes some ten milliseconds a step, on a machine with GPUs too."""


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    return TINY


class Job:
    """A train job in a process of its own."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, env=environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    @property
    def text(self) -> str:
        """What it said so far."""
        return self.log.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
        """Wait for something to become true while the job lives."""
        give_up_s = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"the job ended early:\n{self.text}"
            assert time.monotonic() < give_up_s, f"waited {timeout_s} s in vain:\n{self.text}"
            time.sleep(0.05)

    def result(self, timeout_s: float = 180.0) -> dict[str, Any]:
        """The RESULT of the ended job: the last line, in agreement with the exit code."""
        code = self.process.wait(timeout_s)
        *_, last = self.text.splitlines()
        assert last.startswith("RESULT "), self.text
        result: dict[str, Any] = json.loads(last.removeprefix("RESULT "))
        assert result["exit_code"] == code, self.text
        return result


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow's without a run: to make its tables takes seconds, most of them the disk's."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def start_job(
    ray_environment: dict[str, str], ray_head: LocalCluster, city_shards: Path, empty_database: Path,
    tmp_path: Path,
) -> Iterator[Callable[..., Job]]:  # fmt: skip
    """Starts jobs on the shared head, with the tiny settings and the runs folder of the test.

    What a job that is ended here leaves is gone before the next test looks for processes.
    """
    started: list[Job] = []
    (tmp_path / "runs").mkdir()
    shutil.copy(empty_database, tmp_path / "runs")

    def start(*words: str, shards: Path = city_shards, job: str = "train") -> Job:
        command = [sys.executable, f"jobs/{job}_cityscapes.py", "--shards", str(shards)]
        command += ["--runs", str(tmp_path / "runs"), *TINY, *words]
        started.append(Job(command, ray_environment, tmp_path / f"job{len(started)}.log"))
        return started[-1]

    yield start
    for job in started:
        if job.process.poll() is None:
            job.process.kill()
            job.process.wait()
            give_up_s = time.monotonic() + 60
            while any(titled(ray_head, words) for words in ("RayTrainWorker", "TrainController")):
                assert time.monotonic() < give_up_s, "Ray keeps the processes of a job that was killed"
                time.sleep(0.2)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose bucket `bucket` holds 156 training shards of two samples."""
    folder = tmp_path_factory.mktemp("served")
    pack_served(folder)
    return folder


@pytest.fixture(scope="session")
def local(served: Path) -> str:
    """Where these shards lie on this disk."""
    return str(served / "bucket" / "city")


@pytest.fixture(scope="module")
def s3(served: Path) -> Iterator[str]:
    """The place of a server that has them at s3://bucket/city."""
    with serving("s3", served) as address:
        yield address


@pytest.fixture
def store(tmp_path: Path) -> StoreConfig:
    """An empty cache, and a short look ahead."""
    return StoreConfig(cache_dir=str(tmp_path / "cache"), timeout_s=3.0, lookahead=16)
