"""Runs under torchrun: the shipped segmenter at a size that takes a second, attempt after attempt."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.data.packing.pack import pack_cityscapes
from pipeline.launch.job import read_result
from tests.chaos.hits import missed, read_hits
from tests.chaos.nursery_client import Nursery
from tests.chaos.points import (
    BATCH,
    CHECKPOINT_EVERY,
    EVALUATE_EVERY,
    EXACT_WORLD,
    STEPS,
    VIRTUAL_SHARDS,
    WORLDS,
    Point,
)
from tests.chaos.rank import Orders
from tests.conftest import TRAIN_IMAGES, write_scene

RUN_NAME = "run"
MACHINE = "machine"
"""In the folder of a point that is kept in an object store: the disk of the machine that trains."""
EVALUATION_BATCH = 2
EVALUATED_IMAGES = max(WORLDS) * EVALUATION_BATCH
"""A batch for every rank of the largest world: one without has no layer of it to be killed at."""
SETTINGS = {
    "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
    "model.backbone.depth": 10, "model.backbone.base_width": 8, "model.head.dim": 16,
    "model.head.dropout": 0.3, "optim.lr": 0.01, "optim.clip_norm": 1.0, "optim.warmup_steps": 2,
    "train.steps": STEPS, "train.batch_global": BATCH, "train.ema_decay": 0.9, "train.precision": "float32",
    "train.pictures": 1, "train.evaluate_every": EVALUATE_EVERY, "train.checkpoint_every": CHECKPOINT_EVERY,
    "train.keep_last": 1, "train.metrics_every": 1, "train.eval_batch_per_rank": EVALUATION_BATCH,
    "launch.use_gpu": "no",
}  # fmt: skip
"""The network that ships, with BatchNorm, dropout, augmentation, averaged weights and class centers."""
MODES = {
    "elastic": {"train.determinism": "elastic", "train.virtual_shards": VIRTUAL_SHARDS},
    "exact": {"train.determinism": "exact", "train.sync_batch_norm": True},
}
REFERENCE_WORLD = {"elastic": 1, "exact": EXACT_WORLD}


def typed(point: Point, shards: str, runs: str, name: str = RUN_NAME) -> list[str]:
    """What is typed for a run of the point, in that folder, or at that address, of runs."""
    settings = SETTINGS | MODES[point.determinism] | {"data.loader_workers": point.loader_workers}
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return ["--shards", shards, "--runs", runs, "--name", name, *flags]


def make_shards(folder: Path) -> str:
    """The data of all points, drawn and packed once a folder."""
    if not (folder / "shards" / "manifest.json").exists():
        for split, count in (("train", TRAIN_IMAGES), ("val", EVALUATED_IMAGES)):
            for index in range(count):
                write_scene(folder / "tree", split, index)
        pack_cityscapes(str(folder / "tree"), str(folder / "shards"), ("train", "val"), samples_per_shard=4)
    return str(folder / "shards")


def run_torchrun(point: Point, shards: str, orders: Orders, nursery: Nursery, runs: str = "") -> list[str]:
    """Run all attempts of a point; what went otherwise than it was to go.

    `runs` is the address at which it is kept, if it is not to be in the folder of the point.
    """
    argv = typed(point, shards, runs or str(orders.folder))
    if runs:
        argv += ["--data.store.cache_dir", str(orders.folder / MACHINE)]
    for number, attempt in enumerate(point.attempts, start=1):
        ending = nursery.attempt(orders, attempt.world, argv)
        hits = read_hits(orders.folder)
        if wrong := missed(point.attempts[:number], hits) or ending.other_than(attempt.strike, hits):
            return [f"attempt {number}: {wrong} (torchrun ended with {ending.code})"]
        if attempt.strike and attempt.strike.machine_gone:
            shutil.rmtree(orders.folder / MACHINE)
    result = read_result((orders.folder / "log").read_text(errors="replace").splitlines())
    return [] if result and result["status"] == "ok" else [f"the last attempt said {result}"]
