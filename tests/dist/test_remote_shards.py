"""Shards on a real S3 server, brought to the node's disk: whole, once, kept while they are sound."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import StoreConfig
from pipeline.data.dataset import ShardDataset
from pipeline.data.staging import Staged, stage_shards
from pipeline.errors import WorldStateError
from pipeline.launch.job import run_job
from pipeline.launch.train_job import FIELDS, train
from tests.dist.remote_city import S3, VAL, partials, shards_here, use
from tests.faulty_proxy import FaultyProxy
from tests.rclone_server import s3_environment, serving

ROOT = Path(__file__).resolve().parents[2]
STAGE = """
import sys
from pipeline.config import StoreConfig
from pipeline.data.dataset import ShardDataset
from pipeline.data.staging import stage_shards
config = StoreConfig(cache_dir=sys.argv[2])
dataset = ShardDataset.open(sys.argv[1], sys.argv[3], config)
print(stage_shards(sys.argv[1], dataset.split.shards[:int(sys.argv[4])], config))
"""


def start_staging(store: StoreConfig, proxy: FaultyProxy, root: str, split: str, shards: int):
    return subprocess.Popen(
        [sys.executable, "-c", STAGE, root, store.cache_dir, split, str(shards)],
        env={**os.environ, **s3_environment(proxy.url), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_processes_of_a_node_download_each_shard_once(s3, store):
    with FaultyProxy(s3, faults=False, latency_s=0.02).running() as proxy:
        both = [start_staging(store, proxy, S3, "train", 6) for _ in range(2)]
        said = {process.communicate(timeout=60)[0] for process in both}
        got = Counter((seen.path, seen.range) for seen in proxy.gets(".tar"))
    assert len(said) == 1
    assert "shards=6" in said.pop()
    assert len(got) == 6
    assert set(got.values()) == {1}
    assert len(shards_here(store)) == 6


@pytest.fixture
def large(served) -> tuple[str, bytes]:
    """A data set of one shard of 40 MB, which takes several requests: its root, and the shard's bytes."""
    folder = served / "bucket" / "large"
    if not folder.exists():
        (folder / "train").mkdir(parents=True)
        data = np.random.default_rng(0).integers(0, 256, 40_000_000, np.uint8).tobytes()
        (folder / "train" / "train-000000.tar").write_bytes(data)
        (folder / "train" / "train-000000.index.jsonl").write_text("{}\n")
        content = json.loads((served / "bucket" / "city" / "manifest.json").read_text())
        shard = {"name": "train/train-000000.tar", "samples": 1, "bytes": len(data),
                 "sha256": hashlib.sha256(data).hexdigest(),
                 "index_sha256": hashlib.sha256(b"{}\n").hexdigest()}  # fmt: skip
        content["splits"] = {"train": {"samples": 1, "bytes": len(data), "shards": [shard]}}
        del content["id"]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        content["id"] = hashlib.sha256(text.encode()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(content))
    return "s3://bucket/large", (folder / "train" / "train-000000.tar").read_bytes()


def test_a_download_that_is_killed_leaves_nothing_in_use_and_the_next_one_completes(
    served, large, store, monkeypatch
):
    root, data = large
    with (
        serving("s3", served) as address,
        FaultyProxy(address, faults=False, latency_s=0.2).running() as proxy,
    ):
        killed = start_staging(store, proxy, root, "train", 1)
        give_up_s = time.monotonic() + 60
        while len(proxy.gets(".tar")) < 3:
            assert killed.poll() is None
            assert time.monotonic() < give_up_s
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        killed.stdout.close()
        assert shards_here(store) == []
        assert len(partials(store)) == 1
        use(monkeypatch, proxy)
        dataset = ShardDataset.open(root, "train", store)
        staged = stage_shards(root, dataset.split.shards, store)
        assert staged == Staged(shards=1, bytes=len(data))
        assert partials(store) == []
        (path,) = shards_here(store)
        assert path.read_bytes() == data


def test_a_cached_shard_that_went_bad_is_fetched_again(s3, local, store, monkeypatch):
    with FaultyProxy(s3, faults=False).running() as proxy:
        use(monkeypatch, proxy)
        dataset = ShardDataset.open(S3, "train", store)
        stage_shards(S3, dataset.split.shards[:1], store)
        (path,) = shards_here(store)
        path.write_bytes(bytes(path.stat().st_size))
        got, expected = dataset.sample_at(0), ShardDataset.open(local, "train").sample_at(0)
        assert np.array_equal(got.image_HW3, expected.image_HW3)
        assert np.array_equal(got.label_HW, expected.label_HW)
        assert shards_here(store) == []


def test_a_shard_that_is_not_the_manifests_is_refused_and_not_kept(
    served, large, store, monkeypatch, tmp_path
):
    root, data = large
    other = served / "bucket" / "other"
    if not other.exists():
        (other / "train").mkdir(parents=True)
        (other / "manifest.json").write_bytes((served / "bucket" / "large" / "manifest.json").read_bytes())
        (other / "train" / "train-000000.tar").write_bytes(data[:-1] + b"?")
    with serving("s3", served) as address, FaultyProxy(address, faults=False).running() as proxy:
        use(monkeypatch, proxy)
        root = "s3://bucket/other"
        shards = ShardDataset.open(root, "train", store).split.shards
        with pytest.raises(
            Exception, match=r"train-000000\.tar is not the shard that the manifest lists \(sha256"
        ):
            stage_shards(root, shards, store)
    assert shards_here(store) == partials(store) == []


def test_a_wrong_secret_ends_the_job_with_3_and_one_line(s3, tmp_path, monkeypatch, capsys):
    with FaultyProxy(s3, faults=False).running() as proxy:
        use(monkeypatch, proxy, secret="another")
        words = ["--shards", S3, "--runs", str(tmp_path / "runs"), "--data.store.cache_dir", str(tmp_path)]
        code = run_job("train", lambda result: train(result, words), FIELDS)
    told = capsys.readouterr().err
    assert code == 3
    assert told.count("\n") == 1
    assert "s3://bucket/city/manifest.json is refused to this process (403" in told
    assert "AWS_SECRET_ACCESS_KEY" in told
    assert len(proxy.seen) <= 2


def test_staged_samples_are_read_while_the_server_is_down(s3, local, store, monkeypatch):
    with FaultyProxy(s3, faults=False).running() as proxy:
        use(monkeypatch, proxy)
        dataset = ShardDataset.open(S3, "val", store)
        staged = stage_shards(S3, dataset.split.shards, store)
        assert staged.shards == len(dataset.split.shards)
        proxy.down = True
        got = [dataset.sample_at(index).image_HW3.tobytes() for index in range(VAL)]
    expected = ShardDataset.open(local, "val")
    assert got == [expected.sample_at(index).image_HW3.tobytes() for index in range(VAL)]


def test_a_server_that_goes_down_is_told_after_the_tries_that_are_allowed(s3, store, monkeypatch):
    with FaultyProxy(s3, faults=False).running() as proxy:
        use(monkeypatch, proxy)
        dataset = ShardDataset.open(S3, "train", StoreConfig(cache_dir=store.cache_dir, attempts=3))
        proxy.down = True
        with pytest.raises(WorldStateError, match=r"is unreachable: 3 tries, the last one: it answered 503"):
            dataset.sample_at(0)
        proxy.down = False
        assert dataset.sample_at(0).key
