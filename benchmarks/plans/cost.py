"""One measurement in a fresh process: `python -m plans.cost WHAT SHARDS RANKS`; prints one line of JSON.

A fresh process, so that its memory is that of the thing measured, above what the imports took.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline.data.labels import CITYSCAPES
from pipeline.data.manifest import Split, load_manifest, make_manifest, manifest_text
from pipeline.data.plan import EpochPlan, fit_streams, rank_positions
from pipeline.data.shard_table import ShardEntry, ShardTable
from pipeline.world import World

SAMPLES_PER_SHARD, BATCH_PER_RANK, STREAMS, BLOCK = 256, 2, 64, 1024
_TOGETHER = 256
"""Positions in a look-up, as the loader has."""
_LOOKUPS = 64


def main() -> int:
    """Measures; the result is the last line of standard output."""
    what, shards, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    result = {"plan": lambda: plan(shards, ranks), "manifest": lambda: manifest(shards)}[what]()
    print(json.dumps(result), flush=True)
    return 0


def plan(shards: int, ranks: int) -> dict[str, Any]:
    """CPU µs a sample of one rank's plan, its positions included; its first look-up; its memory."""
    counts = np.full(shards, SAMPLES_PER_SHARD)
    before_mb, began_s = rss_mb(), time.process_time()
    batch_global = ranks * BATCH_PER_RANK
    streams = fit_streams(STREAMS, shards * SAMPLES_PER_SHARD, BLOCK, batch_global)
    made = EpochPlan(counts, 0, streams, BLOCK)
    world = World(ranks // 2, ranks)
    made.at(_positions(world, 0, streams))
    setup_s, began_s = time.process_time() - began_s, time.process_time()
    for number in range(1, _LOOKUPS + 1):
        made.at(_positions(world, number * _TOGETHER // BATCH_PER_RANK * batch_global, streams))
    planning_s = time.process_time() - began_s
    return {
        "shards": shards,
        "ranks": ranks,
        "us_per_sample": 1e6 * planning_s / (_LOOKUPS * _TOGETHER),
        "setup_s": setup_s,
        "rss_mb": rss_mb() - before_mb,
        "streams": streams,
    }


def manifest(shards: int) -> dict[str, Any]:
    """CPU seconds to open and check a manifest, the memory it keeps, and the most it took."""
    with tempfile.TemporaryDirectory(prefix="bench-plan-") as folder:
        size = _write_manifest(Path(folder), shards)
        return _in_child(folder) | {"shards": shards, "file_mb": size / 1e6}


def opened(folder: str) -> dict[str, Any]:
    """The same of a manifest that is there already."""
    before_mb, began_s = rss_mb(), time.process_time()
    found = load_manifest(folder)
    taken = {"open_s": time.process_time() - began_s, "rss_mb": rss_mb() - before_mb}
    assert found.splits["train"].samples > 0
    peak_kb = next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    most_mb = int(peak_kb.split()[1]) * 1024 / 1e6 - before_mb
    return taken | {"peak_mb": max(taken["rss_mb"], most_mb)}


def rss_mb() -> float:
    """Resident memory of this process."""
    return float(psutil.Process().memory_info().rss) / 1e6


def _positions(world: World, start: int, streams: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    batch_global = world.size * BATCH_PER_RANK
    starts = range(start, start + _TOGETHER // BATCH_PER_RANK * batch_global, batch_global)
    return np.concatenate([rank_positions(at, world, BATCH_PER_RANK, streams) for at in starts])


def _write_manifest(folder: Path, shards: int) -> int:
    """Bytes of a manifest of so many shards of 256 MiB."""
    table = ShardTable(_entries(shards))
    text = manifest_text(make_manifest(CITYSCAPES, {"train": Split("train", table)}))
    return (folder / "manifest.json").write_text(text)


def _entries(shards: int) -> Iterator[ShardEntry]:
    for number in range(shards):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        yield ShardEntry(f"train/train-{number:06d}.tar", SAMPLES_PER_SHARD, 2**28, digest, digest[::-1])


def _in_child(folder: str) -> dict[str, Any]:
    code = f"import json; from plans.cost import opened; print(json.dumps(opened({folder!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    sys.exit(main())
