"""What the order of samples costs, and what it is worth.

    make bench BENCH=plan ARGS="--json FILE.json --chart FILE.svg"

Cost: CPU time a sample of one rank's plan (256 positions a look-up, 2 samples a rank and batch), from a
hundred to a million shards and to 4,096 ranks, each in a fresh process; opening manifests as large.
Worth: how often a shard is downloaded in an epoch by nodes of 8 ranks, with this pipeline's first rule
and with this one; shards open at the start; and how well samples are mixed, against a uniform shuffle.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, wherever this is started

from plans.order import downloads, mixing
from report import machine, write_report
from report.chart import Bar, write_bars

ROOT = Path(__file__).resolve().parents[1]
SHARDS = (100, 1000, 10_000, 100_000, 1_000_000)
RANKS = (1, 8, 64, 512, 4096)
NODES = [(8, 2), (16, 1), (16, 4), (24, 1), (24, 8), (48, 1), (48, 4), (64, 1), (64, 4)]
MIXED = [(8, 64), (16, 64), (64, 64), (256, 64), (256, 256)]
"""Global batches, and streams at most."""


def main() -> int:
    """Measure; print tables; write JSON and a chart where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few sizes: does it run at all")
    parser.add_argument("--json", help="write the rows there")
    parser.add_argument("--chart", help="draw them there, as SVG")
    arguments = parser.parse_args()
    sizes, worlds = (SHARDS[:2], RANKS[:2]) if arguments.quick else (SHARDS, RANKS)
    rows = [measure("plan", shards, ranks) for shards in sizes for ranks in worlds]
    manifests = [measure("manifest", shards, 1) for shards in sizes]
    shards, per_shard = (40, 256) if arguments.quick else (1000, 256)
    mixed_sizes = MIXED[:-1] if arguments.quick else MIXED  # so few shards give no 256 streams to the last
    traffic = [downloads(*node, shards, per_shard) for node in NODES]
    mixed = [mixing(*batch, shards, per_shard) for batch in mixed_sizes]
    show(rows, manifests, traffic, mixed)
    more = {"manifests": manifests, "downloads": traffic, "mixing": mixed}
    if arguments.json:
        write_report(arguments.json, "plan", rows, ("numpy",), more)
    if arguments.chart:
        draw(rows, traffic, Path(arguments.chart))
    return 0


def measure(what: str, shards: int, ranks: int) -> dict[str, Any]:
    """What a fresh process finds."""
    path = os.pathsep.join((str(ROOT), str(ROOT / "benchmarks")))
    done = subprocess.run(
        [sys.executable, "-m", "plans.cost", what, str(shards), str(ranks)],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"{what} of {shards} shards failed:\n{done.stdout}{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def show(
    rows: list[dict[str, Any]], manifests: list[dict[str, Any]],
    traffic: list[dict[str, Any]], mixed: list[dict[str, Any]],
) -> None:  # fmt: skip
    """Tables that a person reads."""
    console = Console()
    console.print(f"on {machine()}")
    table = Table("shards", "ranks", "streams", "CPU us a sample", "set-up s", "memory MB", title="Planning")
    for r in rows:
        table.add_row(f"{r['shards']:,}", f"{r['ranks']:,}", str(r["streams"]),
                      f"{r['us_per_sample']:.2f}", f"{r['setup_s']:.3f}", f"{r['rss_mb']:.1f}")  # fmt: skip
    console.print(table)
    table = Table("shards", "file MB", "open CPU s", "keeps MB", "at most MB", title="Opening a manifest")
    for r in manifests:
        table.add_row(f"{r['shards']:,}", f"{r['file_mb']:.1f}", f"{r['open_s']:.2f}",
                      f"{r['rss_mb']:.0f}", f"{r['peak_mb']:.0f}")  # fmt: skip
    console.print(table)
    table = Table("ranks", "batch", "streams", "downloads a shard", "shards in the first batch",
                  "shards a node in 256 a rank", title="Nodes of 8 ranks: before, after")  # fmt: skip
    for r in traffic:
        table.add_row(
            str(r["ranks"]), str(r["batch_global"]), str(r["streams"]),
            f"{r['downloads_before']:.2f}, {r['downloads_after']:.2f}",
            f"{r['first_batch_before']}, {r['first_batch_after']}",
            f"{r['first_256_a_rank_before']}, {r['first_256_a_rank_after']}",
        )  # fmt: skip
    console.print(table)
    table = Table("batch", "streams", "of one shard", "of one drive", "packed side by side",
                  "of one drive on a rank of 4", title="Pairs, against a uniform shuffle's")  # fmt: skip
    for r in mixed:
        table.add_row(str(r["batch_global"]), str(r["streams"]),
                      *(f"{r[name]:.2f}x" for name in ("same_shard", "same_drive", "neighbours")),
                      f"{r['rank_same_drive']:.2%}")  # fmt: skip
    console.print(table)


def draw(rows: list[dict[str, Any]], traffic: list[dict[str, Any]], path: Path) -> None:
    """Bars of planning time and of downloads, those of this rule as their darker part."""
    cost = [
        Bar(f"{r['shards']:,} shards, {r['ranks']:,} ranks", r["us_per_sample"], r["us_per_sample"],
            f"{r['us_per_sample']:.1f} µs")
        for r in rows if r["shards"] >= SHARDS[2]
    ] or [Bar("quick", 1.0, 1.0, "")]  # fmt: skip
    saved = [
        Bar(f"{r['ranks']} ranks, batch {r['batch_global']}", r["downloads_before"], r["downloads_after"],
            f"{r['downloads_before']:.2f}x before, {r['downloads_after']:.2f}x now")
        for r in traffic
    ]  # fmt: skip
    charts = [("CPU time of planning a sample", cost), ("Downloads of a shard in an epoch", saved)]
    write_bars(path, charts, "Dark: this rule. Shorter is better.")


if __name__ == "__main__":
    sys.exit(main())
