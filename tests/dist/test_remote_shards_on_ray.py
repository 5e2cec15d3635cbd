"""A train job on real Ray whose shards lie behind a server that fails on purpose."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline.data.packing.pack import pack_cityscapes
from tests.faulty_proxy import FaultyProxy
from tests.rclone_server import serving

pytestmark = pytest.mark.cluster


def test_a_job_trains_from_an_address_once_its_first_shards_are_on_the_node(
    city_tree: Path, tmp_path: Path, start_job
) -> None:
    pack_cityscapes(str(city_tree), str(tmp_path / "served" / "bucket" / "city"), samples_per_shard=1)
    cache = tmp_path / "cache"
    with (
        serving("http", tmp_path / "served") as upstream,
        FaultyProxy(upstream, faults=True).running() as proxy,
    ):
        job = start_job(
            "--workers", "2", "--train.steps", "4", "--register", "", "--name", "remote",
            "--data.store.cache_dir", str(cache), "--data.store.lookahead", "8",
            shards=f"{proxy.url}/bucket/city",
        )  # fmt: skip
        result = job.result()
    assert (result["status"], result["step"]) == ("ok", 4), job.text
    staged, trained = job.text.index("[stage] "), job.text.index("[train] ")
    assert staged < trained
    assert "no room" not in job.text[staged:trained]
    here = [path for path in cache.glob("ccs-shards-*/shards/*/*/*") if path.suffix != ".part"]
    assert all(
        hashlib.sha256(path.read_bytes()).hexdigest() == path.name
        for path in here
        if path.read_bytes()[:1] != b"{"
    )
    assert sum(path.read_bytes()[:1] != b"{" for path in here) >= 8
