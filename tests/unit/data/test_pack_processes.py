"""Packing by several processes: the same bytes, clean ends, and going on after any kill."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from pipeline.data.manifest import load_manifest
from pipeline.data.packing.pack import pack_cityscapes
from pipeline.data.packing.parallel import Processes, in_turn
from pipeline.errors import DatasetError, WorldStateError

ROOT = Path(__file__).resolve().parents[3]
PACK = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell began the tests with &
from pipeline.data.packing.pack import pack_cityscapes
from pipeline.data.packing.parallel import Processes
with Processes(2) as map_tasks:
    pack_cityscapes(sys.argv[1], sys.argv[2], samples_per_shard=1, map_tasks=map_tasks)
"""


def data_set(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "packing.jsonl")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_number_of_processes_changes_no_byte(tree, tmp_path):
    expected = pack_cityscapes(str(tree), str(tmp_path / "here"), samples_per_shard=3)
    for count in (1, 3):
        out = tmp_path / str(count)
        with Processes(count) as map_tasks:
            report = pack_cityscapes(str(tree), str(out), samples_per_shard=3, map_tasks=map_tasks)
        assert report == expected
        assert data_set(out) == data_set(tmp_path / "here")


def test_results_come_in_the_order_of_the_tasks_and_errors_at_their_turn():
    with Processes(2) as map_tasks:
        assert list(map_tasks(abs, [-n for n in range(50)])) == list(range(50))
        results = map_tasks(json.loads, ["1", "2", "{", "4"])
        assert [next(results), next(results)] == [1, 2]
        with pytest.raises(json.JSONDecodeError):
            next(results)
        assert len(multiprocessing.active_children()) == 2
    assert not multiprocessing.active_children()


def test_a_process_that_is_killed_is_an_error_that_says_what_to_type():
    killed = pytest.raises(
        WorldStateError, match=r"a packing process was killed .* run the same command again"
    )
    with killed, Processes(2) as map_tasks:
        list(map_tasks(os._exit, [0, 0, 0]))
    assert not multiprocessing.active_children()


def test_a_bad_tree_is_the_same_error_whoever_looks(tree, tmp_path):
    for path in sorted((tree / "gtFine").rglob("*.png"))[3:9]:
        cv2.imwrite(str(path), np.full((36, 52), 200, np.uint8))
    said = []
    with Processes(2) as processes:
        for map_tasks in (in_turn, processes):
            with pytest.raises(DatasetError) as error:
                pack_cityscapes(str(tree), str(tmp_path / "out"), map_tasks=map_tasks)
            said.append((str(error.value), error.value.problems))
    assert said[0] == said[1]
    assert len(said[0][1]) == 6


@pytest.fixture
def slow_tree(tmp_path, make_scene, add_pair):
    """Pictures that take a tenth of a second each to pack."""
    for number in range(10):
        add_pair(tmp_path / "slow", "train", "c", f"k{number:02d}", *make_scene(number, 400, 500))
        add_pair(tmp_path / "slow", "val", "c", f"v{number:02d}", *make_scene(number + 50))
    return tmp_path / "slow"


def started(tree: Path, out: Path, **options) -> subprocess.Popen:
    """A packing process that has finished at least two shards, and not all."""
    command = [sys.executable, "-c", PACK, str(tree), str(out)]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)
    record = out / "packing.jsonl"
    give_up_s = time.monotonic() + 60
    while not record.is_file() or record.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        assert time.monotonic() < give_up_s
        time.sleep(0.002)
    return process


def test_a_packer_killed_at_any_moment_leaves_no_orphan_and_is_continued(slow_tree, tmp_path):
    out = tmp_path / "out"
    process = started(slow_tree, out)
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    assert not (out / "manifest.json").exists()
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("*.tar")}
    assert finished
    report = pack_cityscapes(str(slow_tree), str(out), samples_per_shard=1)
    whole = pack_cityscapes(str(slow_tree), str(tmp_path / "whole"), samples_per_shard=1)
    assert report == whole
    assert data_set(out) == data_set(tmp_path / "whole")
    noted = len((out / "packing.jsonl").read_text().splitlines()) - 1
    assert noted == report.shards
    kept = [path for path, stamp in finished.items() if path.stat().st_mtime_ns == stamp]
    assert len(kept) >= 2, "what was noted is not packed again"


def test_an_interrupt_of_the_whole_group_ends_all_without_a_word_from_the_workers(slow_tree, tmp_path):
    process = started(slow_tree, tmp_path / "out", stderr=subprocess.PIPE, text=True, start_new_session=True)
    workers = psutil.Process(process.pid).children()
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
    assert process.returncode == -signal.SIGINT
    assert said.count("Traceback") == 1, "the interrupted script's own"
    assert said.rstrip().endswith("KeyboardInterrupt")


def test_a_shard_that_another_node_wrote_to_its_own_disk_is_told(tree, tmp_path):
    def elsewhere(function, tasks):
        for result in map(function, tasks):
            if hasattr(result, "sha256"):
                (tmp_path / "out" / result.name).unlink()
            yield result

    with pytest.raises(
        WorldStateError, match=r"000000\.tar was written with .* on a cluster --out must be on"
    ):
        pack_cityscapes(str(tree), str(tmp_path / "out"), map_tasks=elsewhere)
    assert not (tmp_path / "out" / "manifest.json").exists()
    pack_cityscapes(str(tree), str(tmp_path / "out"))
    assert load_manifest(str(tmp_path / "out"))
