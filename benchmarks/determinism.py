"""What `train.determinism` costs: time and memory of a step on several ranks, each setting in turn.

    make bench BENCH=determinism ARGS="--blocks 40 --json FILE.json"

Gloo ranks on this machine train the same network on the same pictures, with as many virtual shards as
ranks and with more, beside stock DDP with as many micro-batches. Blocks of steps are taken in turn,
from another setting on each time, so that a slow minute of the machine hits all alike; times are medians
over blocks, ratios are of those medians, with 95 % of a bootstrap over rounds. Memory is the peak of a fresh
group of ranks for each setting.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, wherever this is started

from ranks.task import RanksTask, Variant
from report import machine, write_report
from steps.pairs import ratio_of_medians
from steps.tables import Table

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "numpy")
TIMEOUT_S = 3600
QUICK = {"model.backbone.depth": "10", "model.backbone.base_width": "8", "model.head.dim": "16"}


def main() -> int:
    """Measure; print the table; write JSON where asked to."""
    arguments = parse()
    load = os.getloadavg()[0]
    print(f"on {machine()}, load {load:.1f}", flush=True)
    task = wanted(arguments)
    timed = run(task)
    if arguments.quick:  # one group of processes for all of it
        alone = [timed] * len(task.variants)
    else:
        alone = [run(replace(task, variants=[variant], blocks=1)) for variant in task.variants]
    rows = [row(task, number, timed, alone) for number in range(len(task.variants))]
    print(table(rows, task).plain())
    if arguments.quick:
        print("A smoke run: it is too short for its figures to mean anything.")
    if arguments.json:
        command = f'make bench BENCH=determinism ARGS="{shlex.join(sys.argv[1:])}"'
        more = {"command": command, "load": load, "task": asdict(task)}
        write_report(arguments.json, "determinism", rows, PACKAGES, more)
    return 0


def parse() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="gloo ranks on this machine")
    parser.add_argument("--shards", type=int, default=8, help="virtual shards of the larger variant")
    parser.add_argument("--recipe", default="laptop", help="what the network is taken from")
    parser.add_argument("--blocks", type=int, default=20, help="blocks of each setting that count")
    parser.add_argument("--block", type=int, default=5, help="steps of a block, with one point of the curves")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on each rank")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="any other setting")
    parser.add_argument("--quick", action="store_true", help="a tiny network, two blocks: does it run")
    parser.add_argument("--json", help="write the rows there")
    return parser.parse_args()


def wanted(arguments: argparse.Namespace) -> RanksTask:
    """What the ranks are told."""
    size, micro = arguments.ranks, arguments.shards // arguments.ranks
    elastic = {"train.determinism": "elastic"}
    variants = [
        Variant("off", "off", 1, {}),
        Variant("exact", "off", 1, {"train.determinism": "exact"}),
        Variant(f"elastic, {size} shards", "off", 1, elastic | {"train.virtual_shards": str(size)}),
    ]
    if micro > 1:
        off, accumulated = f"off, {micro} micro-batches", {"train.accumulation": str(micro)}
        shards = {"train.virtual_shards": str(arguments.shards)}
        variants += [
            Variant(off, off, micro, accumulated),
            Variant(
                f"exact, {micro} micro-batches", off, micro, accumulated | {"train.determinism": "exact"}
            ),
            Variant(f"elastic, {arguments.shards} shards", off, micro, elastic | shards),
        ]
    settings = dict(text.split("=", 1) for text in arguments.set)
    task = RanksTask(
        arguments.recipe, size, arguments.threads, arguments.blocks, arguments.block, 2, settings, variants
    )
    if arguments.quick:
        small = {"data.crop_height": "32", "data.crop_width": "64"} | QUICK
        task = replace(task, blocks=2, block=1, warm_up=1, settings=small | settings)
    return task


def run(task: RanksTask) -> dict[str, Any]:
    """What a fresh group of ranks finds; the first of them speaks for all."""
    path = os.pathsep.join(filter(None, (str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(task.threads)}
    with tempfile.TemporaryDirectory() as folder:
        told = [
            json.dumps({"rank": rank, "folder": folder, "task": asdict(task)}) for rank in range(task.size)
        ]
        command = [sys.executable, "-m", "ranks.measure"]
        ranks = [subprocess.Popen([*command, words], env=environment) for words in told]
        codes = [rank.wait(TIMEOUT_S) for rank in ranks]
        if any(codes):
            sys.exit("the measurement failed; what it said is above")
        found: dict[str, Any] = json.loads(Path(folder, "found.json").read_text())
    return found


def row(task: RanksTask, number: int, timed: dict[str, Any], alone: list[dict[str, Any]]) -> dict[str, Any]:
    """A variant's times and memory, each also over those of its stock DDP."""
    variant = task.variants[number]
    names = [other.name for other in task.variants]
    base = names.index(variant.versus)
    wall, cpu = np.array(timed["wall_ms"]), np.array(timed["cpu_ms"])
    ratio, cpu_ratio = (ratio_of_medians(ms[:, [number, base]]) for ms in (wall, cpu))
    memory = [found["peak_mb"] for found in alone]
    return {
        "determinism": variant.name,
        "versus": variant.versus,
        "ranks": task.size,
        "micro_batches": variant.micro_batches,
        "step_ms": float(np.median(wall[:, number])),
        "ratio": ratio.ratio,
        "interval": ratio.interval,
        "cpu_ms": float(np.median(cpu[:, number])),
        "cpu_ratio": cpu_ratio.ratio,
        "cpu_interval": cpu_ratio.interval,
        "peak_mb": memory[number],
        "peak_ratio": memory[number] / memory[base],
        "gradient_mb": timed["gradient_mb"],
    }


def table(rows: list[dict[str, Any]], task: RanksTask) -> Table:
    """The rows for a terminal."""
    header = ("determinism", "step ms", "ratio", "95 %", "CPU ms", "ratio", "95 %", "peak MB", "ratio")
    cells = [
        (
            row["determinism"], f"{row['step_ms']:.1f}", f"{row['ratio']:.3f}", _interval(row["interval"]),
            f"{row['cpu_ms']:.1f}", f"{row['cpu_ratio']:.3f}", _interval(row["cpu_interval"]),
            f"{row['peak_mb']:.0f}", f"{row['peak_ratio']:.3f}",
        )
        for row in rows
    ]  # fmt: skip
    gradient_mb = rows[0]["gradient_mb"]
    title = f"A step on {task.size} ranks ({task.recipe}, {gradient_mb:.1f} MB of gradients a rank)"
    return Table(title, header, cells)


def _interval(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f} to {interval[1]:.3f}"


if __name__ == "__main__":
    sys.exit(main())
