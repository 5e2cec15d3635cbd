"""What checkpoints cost of training: paired wall time of steps with a save among them, and without.

    make bench BENCH=checkpoint_cost ARGS="--json FILE.json"

The training of `--recipe`, in one process on all cores, on pictures of noise. A block of steps begins with a
save, or with none, and ends when its write has; which of the two comes first alternates, so that a slow
minute of the machine hits both alike. `extra_s` is the median of the pairs' differences: the stall, and what
the writer's thread takes from the steps beside it. `checkpoint_stall_share` is that at one save a minute.
`extra_cpu_s` is the same of the process's CPU time, which a busy machine changes least.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, wherever this is started

from report import write_report

from pipeline.data.loader import Batch
from pipeline.data.packing.pack import pack_cityscapes
from pipeline.launch.fence import begin_attempt
from pipeline.launch.run_context import JournaledContext
from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.train.run import Run, assemble, save
from pipeline.train.step import to_device
from pipeline.world import World

PACKAGES = ("torch", "numpy", "safetensors")
A_MINUTE_S = 60.0


def main() -> int:
    """Measure, print a table; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recipe", default="laptop")
    parser.add_argument("--setting", nargs="*", default=[], help="NAME=VALUE, over the recipe's")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=8, help="a block; a write should end within it")
    parser.add_argument("--runs", help="folder on the disk to write to, instead of a temporary one")
    parser.add_argument("--quick", action="store_true", help="two pairs of two steps: does it run at all")
    parser.add_argument("--json", help="write the rows there")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.pairs, arguments.steps = 2, 2
        arguments.setting = ["train.batch_global=2", *arguments.setting]
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(dir=arguments.runs) as folder:
        row = measure(Path(folder), arguments)
    show(row)
    if arguments.quick:
        print("A smoke run: it is too short for its figures to mean anything.")
    if arguments.json:
        write_report(arguments.json, "checkpoint_cost", [row], PACKAGES, {"arguments": vars(arguments)})
    return 0


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The row of the recipe."""
    settings = {"train.steps": 1_000_000, "data.loader_workers": 0}
    settings |= dict(setting.split("=", 1) for setting in arguments.setting)
    config = with_settings(recipe(arguments.recipe), settings)
    shards = make_shards(folder, config.data.input_height, config.data.input_width)
    run_dir = folder / "run"
    context = JournaledContext(run_dir, World(), begin_attempt(run_dir))
    run = assemble(config, shards, run_dir, context)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    cpu_seconds: dict[bool, list[float]] = {True: [], False: []}
    stalls: list[float] = []
    with closing(run.saver), closing(run.loader.batches(0)) as batches:
        block(run, batches, arguments.steps)  # the first save makes its memory, the first steps theirs
        save(run)
        for number in range(arguments.pairs):
            for saved in (True, False) if number % 2 else (False, True):
                run.saver.finish()
                begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
                if saved:
                    stalls.append(save(run))
                block(run, batches, arguments.steps)
                run.saver.finish()
                seconds[saved].append(time.perf_counter() - begin_s)
                cpu_seconds[saved].append(time.process_time() - begin_cpu_s)
    context.close()
    newest = max((run_dir / "checkpoints").iterdir())
    extra_s = statistics.median(differences := _differences(seconds))
    return {
        "recipe": arguments.recipe,
        "device": run.device.type,
        "megabytes": round(sum(path.stat().st_size for path in newest.iterdir()) / 1e6, 1),
        "block_s": round(statistics.median(seconds[False]), 3),
        "stall_s": round(statistics.median(stalls), 4),
        "extra_s": round(extra_s, 4),
        "extra_s_quartiles": [round(q, 4) for q in statistics.quantiles(differences, n=4)[::2]],
        "extra_cpu_s": round(statistics.median(_differences(cpu_seconds)), 4),
        "checkpoint_stall_share": round(extra_s / A_MINUTE_S, 5),
        "pairs": arguments.pairs,
    }


def _differences(seconds: dict[bool, list[float]]) -> list[float]:
    """With a save less without, pair by pair."""
    return [one - other for one, other in zip(seconds[True], seconds[False], strict=True)]


def block(run: Run, batches: Iterator[Batch], steps: int) -> None:
    """Take so many steps, to their end on the device."""
    for _ in range(steps):
        on_device = [to_device(next(batches), run.device) for _ in range(run.config.train.accumulation)]
        agreement = run.runner.agree(on_device, stop_requested=False)
        run.runner.step(on_device, agreement.denominators, run.state.step)
        run.state.advance(run.config.train.batch_global)
        if run.ema:
            run.ema.update(run.model, run.state.step)
    if run.device.type == "cuda":
        torch.cuda.synchronize()


def make_shards(folder: Path, height: int, width: int) -> str:
    """Sixteen pictures of noise with labels of blocks, packed."""
    for split, number in (*(("train", n) for n in range(14)), ("val", 14), ("val", 15)):
        random = np.random.default_rng(number)
        label = cv2.resize(
            random.choice([7, 11, 23, 26], (4, 8)).astype(np.uint8), (width, height), interpolation=0
        )
        image = random.integers(0, 256, (height, width, 3), np.uint8)
        for kind, suffix, picture in (
            ("leftImg8bit", "leftImg8bit", image),
            ("gtFine", "gtFine_labelIds", label),
        ):
            path = folder / "tree" / kind / split / "noise" / f"noise_{number:06d}_000019_{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), picture)
    pack_cityscapes(str(folder / "tree"), str(folder / "shards"), ("train", "val"), samples_per_shard=4)
    return str(folder / "shards")


def show(row: dict[str, Any]) -> None:
    """The row as a table."""
    table = Table(title="What a checkpoint costs", title_justify="left")
    for name in row:
        table.add_column(name)
    table.add_row(*(str(value) for value in row.values()))
    Console(width=160).print(table)


if __name__ == "__main__":
    sys.exit(main())
