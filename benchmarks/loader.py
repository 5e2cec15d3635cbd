"""CPU time a training sample: this pipeline's loader and the field's, side by side.

    make bench BENCH=loader ARGS="--root TREE --memory 100000 --json FILE --note FILE.md --chart FILE.svg"

Same pictures, same crop policy (scale 0.5 to 2, flip, colours, no class above 0.75 of a crop), two
workers, batches as contiguous arrays in the consumer's process. Each number is a fresh process; its CPU
time is that of all its processes, start and warm-up left out. `limit` is decoding and cropping alone,
from bytes in memory, in one process a core; a loader's share of it tells what its machinery leaves.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, wherever this is started

from loaders.note import memory_line, write_note
from loaders.pictures import mean_bytes
from loaders.side_by_side import CONTENDERS, measure, prepare, present, run
from loaders.task import Task
from report import machine, write_report
from report.chart import Bar, write_bars

PACKAGES = ("torch", "numpy", "opencv-python", "isal", "webdataset", "mosaicml-streaming", "litdata", "ray")
CITYSCAPES = Task("", "", "", 1024, 2048, 512, 1024, batch=4, warm_up=32, samples=256)
CAMVID = Task("", "", "", 360, 480, 360, 480, batch=8, warm_up=128, samples=2048)
"""The crop has the size of the picture, as in the recipe `camvid`."""
QUICK = {"ours": "striped", "raydata": ""}
"""The one format of a loader in a smoke run, where it is not png; Ray has none there."""
TINY = Task("ours", "striped", "", 64, 128, 32, 64, batch=4, warm_up=0, samples=0)


def main() -> int:
    """Measure; print tables; write JSON and a chart where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", default="", help="tree in Cityscapes' layout; the drawn mini city without")
    parser.add_argument("--pictures", type=int, default=48, help="pictures of each size")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="watch memory over N batches too")
    parser.add_argument(
        "--quick", action="store_true", help="a few samples, a format a loader, no Ray: does it run"
    )
    parser.add_argument("--work", default="", help="keep the packed pictures there and use those that are")
    parser.add_argument("--json", help="write the rows there")
    parser.add_argument("--note", help="write the tables there, as Markdown")
    parser.add_argument("--chart", help="draw them there, as SVG")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, end_whole)
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as scratch:
        rows, pictures = compare(arguments, Path(arguments.work or scratch))
        memory = resident(arguments, Path(scratch)) if arguments.memory else {}
    show(rows, pictures, memory)
    if arguments.quick:
        print("A smoke run: it is too short for its figures to mean anything.")
    more = {"pictures": pictures} | ({"memory": memory} if memory else {})
    if arguments.json:
        write_report(arguments.json, "loader", rows, PACKAGES, more)
    if arguments.note:
        write_note(Path(arguments.note), rows, pictures, memory, PACKAGES)
    if arguments.chart:
        draw(rows, pictures, Path(arguments.chart))
    return 0


def end_whole(number: int, frame: FrameType | None) -> None:
    """Ends what was started, and this process by way of its `with` blocks: no folder is left behind."""
    signal.signal(number, signal.SIG_IGN)
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=10)
    sys.exit(128 + number)


def compare(arguments: argparse.Namespace, work: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of both sizes, and what their pictures are."""
    rows: list[dict[str, Any]] = []
    pictures = {}
    contenders = present(CONTENDERS)
    if arguments.quick:  # Ray alone takes half a minute to start
        contenders = [one for one in contenders if one.format == QUICK.get(one.name, "png")]
    source = "photographs" if arguments.root else "drawn streets"
    for size in (CAMVID,) if arguments.quick else (CITYSCAPES, CAMVID):
        name = f"{size.width}x{size.height}"
        task = size.at(work / name)
        count, repeats = arguments.pictures, arguments.repeats
        if arguments.quick:
            task, count, repeats = task.shortened(), 4, 1
        prepare(contenders, task, arguments.root, count)
        rows += with_ratio(list(measure(contenders, task, repeats)))
        mega_bytes = [mean_bytes(task.pictures, pattern) / 1e6 for pattern in ("*_000019.png", "*.jpg")]
        pictures[name] = (
            f"{count} {source}, where smaller enlarged with a sensor's noise: "
            f"{mega_bytes[0]:.2f} MB as PNG, {mega_bytes[1]:.2f} MB as JPEG on average"
        )
    return rows, pictures


def with_ratio(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with its CPU time as a multiple of this loader's on striped PNG."""
    best = next(r["cpu_ms_per_sample"] for r in rows if (r["loader"], r["format"]) == ("ours", "striped"))
    return [row | {"times_striped": row["cpu_ms_per_sample"] / best} for row in rows]


def resident(arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Memory of this loader's processes over many batches of tiny crops."""
    task = TINY.at(work / "tiny").lengthened(arguments.memory)
    ours = [one for one in CONTENDERS if (one.name, one.format) == ("ours", "striped")]
    prepare(ours, task, arguments.root, 8)
    return run("resident", task)


def show(rows: list[dict[str, Any]], pictures: dict[str, str], memory: dict[str, Any]) -> None:
    """A table a size, and the memory where it was watched."""
    console = Console()
    console.print(f"on {machine()}")
    for size, what in pictures.items():
        table = Table(
            "loader", "format", "CPU ms", "per s a core", "limit ms", "share", "x striped", "start s",
            title=f"{size}: {what}",
        )  # fmt: skip
        for row in (row for row in rows if row["size"] == size):
            table.add_row(
                row["loader"], row["format"], f"{row['cpu_ms_per_sample']:.2f}",
                f"{row['samples_per_s_core']:.1f}", f"{row['limit_ms_per_sample']:.2f}",
                f"{row['share_of_limit']:.0%}", f"{row['times_striped']:.2f}", f"{row['start_s']:.1f}",
            )  # fmt: skip
        console.print(table)
    if memory:
        console.print(memory_line(memory))


def draw(rows: list[dict[str, Any]], pictures: dict[str, str], path: Path) -> None:
    """Bars of CPU time, the in-process limit as their darker part."""
    charts = []
    for size in pictures:
        bars = [
            Bar(
                f"{row['loader']}, {row['format']}",
                row["cpu_ms_per_sample"],
                min(row["limit_ms_per_sample"], row["cpu_ms_per_sample"]),
                f"{row['cpu_ms_per_sample']:.1f} ms ({row['times_striped']:.1f}x)",
            )
            for row in sorted(rows, key=lambda row: float(row["cpu_ms_per_sample"]))
            if row["size"] == size
        ]
        charts.append((f"CPU time a sample, pictures of {size}", bars))
    write_bars(path, charts, "Dark: decoding and cropping alone, in one process. Shorter is better.")


if __name__ == "__main__":
    sys.exit(main())
