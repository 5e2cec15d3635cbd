"""Packing by Ray's tasks: the bytes of one process, and errors as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.data.packing.pack import pack_cityscapes

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).resolve().parents[2]
PACK = """
import sys
from pipeline.data.packing.pack import pack_cityscapes
from pipeline.launch.ray_map import RayTasks, task_map
with task_map() as map_tasks:
    assert isinstance(map_tasks, RayTasks)
    print(pack_cityscapes(sys.argv[1], sys.argv[2], samples_per_shard=3, map_tasks=map_tasks).manifest_id)
    print(list(map_tasks(abs, range(-40, 0))))
"""
ONE_AT_A_TIME = """
import time
from pipeline.launch.ray_map import task_map
def work(number):
    begin_s = time.time()
    time.sleep(0.3)
    return begin_s, time.time()
with task_map(processes=1) as map_tasks:
    spans = list(map_tasks(work, range(4)))
print(all(end_s <= begin_s for (_, end_s), (begin_s, _) in zip(spans, spans[1:])))
"""


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "packing.jsonl")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_tasks_of_the_cluster_write_the_bytes_of_one_process(
    city_tree: Path, ray_environment: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", PACK, str(city_tree), str(tmp_path / "cluster")]
    ended = subprocess.run(
        command, env=ray_environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr
    report = pack_cityscapes(str(city_tree), str(tmp_path / "here"), samples_per_shard=3)
    manifest_id, numbers = ended.stdout.splitlines()[-2:]
    assert manifest_id == report.manifest_id
    assert json.loads(numbers) == list(range(40, 0, -1))
    assert files(tmp_path / "cluster") == files(tmp_path / "here")


def test_no_more_tasks_work_at_a_time_than_were_asked_for(ray_environment: dict[str, str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ONE_AT_A_TIME],
        env=ray_environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "True"


def test_the_job_tells_a_bad_tree_in_one_line_from_the_cluster_too(
    city_tree: Path, ray_environment: dict[str, str], tmp_path: Path
) -> None:
    tree = tmp_path / "tree"
    for path in city_tree.rglob("*.png"):
        copy = tree / path.relative_to(city_tree)
        copy.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, copy)
    bad = sorted(tree.rglob("*_leftImg8bit.png"))[0]
    data = bad.read_bytes()
    bad.unlink()
    bad.write_bytes(data[:400])
    command = [sys.executable, "jobs/pack_cityscapes.py", "--root", str(tree), "--out", str(tmp_path / "out")]
    ended = subprocess.run(
        command, env=ray_environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert (
        ended.stderr
        == f"pack: {bad} is a broken PNG: cut short after 400 bytes; replace it; nothing was packed\n"
    )
    result = json.loads(ended.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert (result["status"], result["refused"]) == ("tree_error", 1)
    assert not (tmp_path / "out").exists()
