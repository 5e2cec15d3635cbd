"""Runs under torchrun: a nursery of attempts, and the shipped segmenter at a size that takes a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from pipeline.data.packing.pack import pack_cityscapes
from pipeline.launch.job import read_result
from tests.chaos.points import (
    BATCH,
    CHECKPOINT_EVERY,
    EVALUATE_EVERY,
    EXACT_WORLD,
    STEPS,
    VIRTUAL_SHARDS,
    Point,
)
from tests.chaos.rank import Orders
from tests.conftest import TRAIN_IMAGES, VAL_IMAGES, write_scene

ROOT = Path(__file__).parents[2]
RUN_NAME = "run"
SETTINGS = {
    "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
    "model.backbone.depth": 10, "model.backbone.base_width": 8, "model.head.dim": 16,
    "model.head.dropout": 0.3, "optim.lr": 0.01, "optim.clip_norm": 1.0, "optim.warmup_steps": 2,
    "train.steps": STEPS, "train.batch_global": BATCH, "train.ema_decay": 0.9, "train.precision": "float32",
    "train.pictures": 1, "train.evaluate_every": EVALUATE_EVERY, "train.checkpoint_every": CHECKPOINT_EVERY,
    "train.keep_last": 1, "train.metrics_every": 1, "train.eval_batch_per_rank": 2, "launch.use_gpu": "no",
}  # fmt: skip
"""The network that ships, with BatchNorm, dropout, augmentation, averaged weights and class centers."""
MODES = {
    "elastic": {"train.determinism": "elastic", "train.virtual_shards": VIRTUAL_SHARDS},
    "exact": {"train.determinism": "exact", "train.sync_batch_norm": True},
}
REFERENCE_WORLD = {"elastic": 1, "exact": EXACT_WORLD}


def typed(shards: str, runs: Path, determinism: str, name: str = RUN_NAME) -> list[str]:
    """What is typed for a run in that folder of runs."""
    settings = SETTINGS | MODES[determinism]
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return ["--shards", shards, "--runs", str(runs), "--name", name, *flags]


def struck(folder: Path) -> list[str]:
    """Where the kills of a point came."""
    log = folder / "strikes.jsonl"
    return [json.loads(line)["place"] for line in log.read_text().splitlines()] if log.exists() else []


def make_shards(folder: Path) -> str:
    """The data of all points, drawn and packed once a folder."""
    if not (folder / "shards" / "manifest.json").exists():
        for split, count in (("train", TRAIN_IMAGES), ("val", VAL_IMAGES)):
            for index in range(count):
                write_scene(folder / "tree", split, index)
        pack_cityscapes(str(folder / "tree"), str(folder / "shards"), ("train", "val"), samples_per_shard=4)
    return str(folder / "shards")


class Nursery:
    """Talks to nursery.py for as long as the context is open."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nursery"], cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def attempt(self, orders: Orders, world: int, argv: Sequence[str]) -> int:
        """Exit code of torchrun with so many ranks, or minus the signal that killed all of it."""
        assert self._process.stdin
        assert self._process.stdout
        log = str(orders.folder / "log")
        command = {"orders": orders.to_dict(), "world": world, "argv": list(argv), "log": log}
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return int(json.loads(self._process.stdout.readline())["exit"])


def run_torchrun(point: Point, shards: str, orders: Orders, nursery: Nursery) -> list[str]:
    """Run all attempts of a point; what went otherwise than it was to go."""
    argv = typed(shards, orders.folder, point.determinism)
    wrong = []
    for number, attempt in enumerate(point.attempts, start=1):
        code = nursery.attempt(orders, attempt.world, argv)
        if attempt.strike is None and code != 0:
            wrong.append(f"attempt {number} ended with {code}")
        if attempt.strike is not None and len(struck(orders.folder)) != number:
            wrong.append(f"attempt {number} ended with {code} and was not killed")
            break
    result = read_result((orders.folder / "log").read_text(errors="replace").splitlines())
    if not wrong and (not result or result["status"] != "ok"):
        wrong.append(f"the last attempt said {result}")
    return wrong
