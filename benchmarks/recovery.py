"""How long training takes to go on after a fault, what is lost, and what remains under a kill every so often.

    make bench BENCH=recovery ARGS="--runs 20 --kill-every 20 60 --json FILE.json --chart FILE.svg"

A job of two ranks on two CPUs under Ray, with a network of some ten milliseconds a step. Each fault is done
to a training that has settled; its time runs to the first new step, steps lost are those done again. Goodput
is steps in a wall interval under kills over steps in the same interval without, before and after. What
Ray Train adds after the last step is timed at the ends of jobs. Memory is that of the driver and of Ray's own
processes, before the kills and after.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, wherever this is started

from recoveries.faults import FAULTS, SUPERVISED, recover, steps_in, summary
from recoveries.training import make_shards, running, supervised
from report import machine, write_report
from report.chart import Bar, write_bars

from pipeline.tracking.journal import START

PACKAGES = ("torch", "ray")


def main() -> int:
    """Measure; print a line a result; write JSON where asked to."""
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # ends job and head
    load = os.getloadavg()[0]
    print(f"on {machine()}, load {load:.1f}", flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        shards = make_shards(Path(folder), pictures=16)
        for fault in arguments.faults:
            rows.append(recoveries(arguments, shards, fault))
            print("{fault}: p50 {p50_s} s, p99 {p99_s} s, {steps_lost:.0f} steps lost".format(**rows[-1]))
        for kill_every_s in arguments.kill_every:
            rows.append(goodput(arguments, shards, kill_every_s))
            print("a kill every {kill_every_s:.0f} s: goodput {goodput:.3f}".format(**rows[-1]), flush=True)
        if arguments.ends:
            rows.append(endings(arguments, shards))
            print("after the last step: p50 {fit_overhead_s} s".format(**rows[-1]), flush=True)
    if arguments.quick:
        print("A smoke run: it is too short for its figures to mean anything.")
    if arguments.chart:
        draw(rows, Path(arguments.chart))
    if arguments.json:
        command = f'make bench BENCH=recovery ARGS="{shlex.join(sys.argv[1:])}"'
        write_report(arguments.json, "recovery", rows, PACKAGES, {"command": command, "load": load})
    return 0


def parse() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=FAULTS, help="all by default")
    parser.add_argument("--runs", type=int, default=20, help="of each fault")
    parser.add_argument("--settle", type=float, default=15.0, metavar="S", help="of training before a fault")
    parser.add_argument("--kill-every", nargs="*", type=float, default=[20.0, 60.0], metavar="S")
    parser.add_argument("--interval", type=float, default=240.0, metavar="S", help="wall time under kills")
    parser.add_argument("--ends", type=int, default=5, help="jobs whose end is timed")
    parser.add_argument("--spares", choices=("yes", "no"), default="yes", help="processes in reserve")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the ranks")
    parser.add_argument("--quick", action="store_true", help="one kill and no goodput: does it run")
    parser.add_argument("--json", help="write the rows there")
    parser.add_argument("--chart", help="draw them there, as SVG")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.faults, arguments.runs, arguments.settle = ["kill"], 1, 0.0
        arguments.kill_every, arguments.ends = [], 0
    return arguments


def recoveries(arguments: argparse.Namespace, shards: Path, fault: str) -> dict[str, Any]:
    """The row of one fault, done `--runs` times to one job."""
    chooser = random.Random(arguments.seed)
    settings = {"launch.spares": arguments.spares}
    by_itself = (
        supervised(shards.parent / "tree", settings) if fault in SUPERVISED else running(shards, settings)
    )
    with by_itself as training:
        found = [recover(training, fault, arguments.settle, chooser) for _ in range(arguments.runs)]
    return summary(fault, found) | {"spares": arguments.spares}


def goodput(arguments: argparse.Namespace, shards: Path, kill_every_s: float) -> dict[str, Any]:
    """The row of one interval between kills; undisturbed steps are counted on both sides of the kills."""
    chooser = random.Random(arguments.seed)
    with running(shards, {"launch.spares": arguments.spares}) as training:
        steps_in(training, arguments.settle, None, chooser)
        before = steps_in(training, arguments.interval / 2, None, chooser)
        memory, starts = training.memory_mb(), len(training.events(START))
        under = steps_in(training, arguments.interval, kill_every_s, chooser)
        steps_in(training, arguments.settle, None, chooser)
        restarts, grown = len(training.events(START)) - starts, training.memory_mb()
        after = steps_in(training, arguments.interval / 2, None, chooser)
    share = under / max(before + after, 1)
    row = {"kill_every_s": kill_every_s, "goodput": round(share, 4), "spares": arguments.spares}
    return row | {
        "steps": {"before": before, "under_kills": under, "after": after},
        "restarts": restarts,
        "memory_before": memory,
        "memory_after": grown,
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of the times to recover, and of what remains under kills."""
    faults = [
        Bar(row["fault"], row["p99_s"], row["p50_s"], f"p50 {row['p50_s']:.1f} s, p99 {row['p99_s']:.1f} s")
        for row in rows
        if "fault" in row
    ]
    shares = [
        Bar(f"every {row['kill_every_s']:.0f} s", 1.0, row["goodput"], f"{row['goodput']:.2f}")
        for row in rows
        if "goodput" in row
    ]
    charts = [("From the fault to the next step", faults), ("Goodput under a kill of a rank", shares)]
    write_bars(path, [chart for chart in charts if chart[1]], "Dark: the median; steps that count.")


def endings(arguments: argparse.Namespace, shards: Path) -> dict[str, Any]:
    """The row of what Ray Train adds after the last step of a job."""
    seconds = []
    for _ in range(arguments.ends):
        with running(shards, {"launch.spares": arguments.spares, "train.steps": 200}) as training:
            seconds.append(round(training.ended_after_s(), 2))
    return {"fit_overhead_s": statistics.median(seconds), "runs": len(seconds), "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())
