"""What the benchmark of the loader promises about its own figures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
BURN = "import time\nwhile time.process_time() < {}: pass\nprint(flush=True)\nimport sys; sys.stdin.read()"


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def task(tmp_path):
    from loaders.pictures import make_pictures
    from loaders.task import Task

    make_pictures("", tmp_path, 64, 128, 3)
    return Task("ours", "png", str(tmp_path), 64, 128, 32, 64, batch=1, warm_up=0, samples=3)


def test_cpu_time_of_children_counts_while_they_live_and_after_they_ended():
    from loaders.measure import tree_cpu_s

    before_s = tree_cpu_s()
    with subprocess.Popen(
        [sys.executable, "-c", BURN.format(0.3)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        child.stdout.readline()
        living_s = tree_cpu_s() - before_s
        child.communicate()
    ended_s = tree_cpu_s() - before_s
    assert living_s >= 0.28  # the kernel counts the time of others in hundredths
    assert ended_s >= 0.3


def test_peers_crop_the_very_pixels_that_this_loader_crops(task):
    from loaders import crop_first, ours
    from loaders.task import SEED, encoded

    from pipeline.data.dataset import ShardDataset
    from pipeline.data.loader import TrainLoader
    from pipeline.world import World

    ours.write(task)
    files = {key: (image, label) for key, image, label in encoded(task.pictures, "png")}
    loader = TrainLoader(
        ShardDataset.open(str(task.packed), "train"), replace(task.config, loader_workers=0), SEED, World(), 1
    )
    peer = crop_first.CropFirst(task)
    batches = loader.batches(0)
    for _ in range(6):
        batch = next(batches)
        image_hw3, label_hw = peer.sample(*files[batch.keys[0]])
        assert np.array_equal(batch.image_BHW3[0], image_hw3)
        assert np.array_equal(batch.label_BHW[0], label_hw)
    batches.close()


def test_the_folder_loader_delivers_normalised_float_crops_of_the_same_size(task):
    from loaders.folder import Folder
    from loaders.task import picture_files

    folder = Folder(task, picture_files(task.pictures, "png"))
    for index in [0, 1, 2] * 4:
        image_3hw, label_hw = folder[index]
        assert tuple(image_3hw.shape) == (3, 32, 64)
        assert tuple(label_hw.shape) == (32, 64)
        assert abs(float(image_3hw.mean())) < 3.0
        assert set(label_hw.unique().tolist()) <= {*range(19), 255}


def test_the_lock_of_the_peers_pins_each_once_and_repeats_none_of_the_main_lock():
    locks = BENCHMARKS.parent / "locks"
    main, peers = (
        [line.split(" ;")[0] for line in (locks / name).read_text().splitlines() if not line.startswith("#")]
        for name in ("cpu.txt", "bench.txt")
    )
    names = {line.partition("==")[0] for line in main}
    assert peers
    assert all("==" in line and line.partition("==")[0] not in names for line in peers)


def test_a_benchmark_that_is_told_to_end_leaves_no_folder_and_no_process(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "loader.py"), "--quick"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as benchmark:
        for line in benchmark.stdout:
            if line.startswith("making"):
                break
        while not (children := psutil.Process(benchmark.pid).children(recursive=True)):
            assert benchmark.poll() is None
        benchmark.send_signal(signal.SIGTERM)
        benchmark.communicate(timeout=30)
    assert benchmark.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    assert not any(child.is_running() for child in children)


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_every_benchmark_has_a_smoke_run(name):
    assert '"--quick"' in (BENCHMARKS / f"{name}.py").read_text()
