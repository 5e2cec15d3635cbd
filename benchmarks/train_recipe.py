"""A recipe from its pictures to its score, by the command that people type: `make train`.

    make bench BENCH=train_recipe ARGS="--cityscapes TREE --recipe camvid --seeds 0 1 --json FILE"

Each seed is a whole run: packing, a Ray head, training, evaluation, registration. A row is what the
run's own RESULT line said, with the IoU of every class at its best evaluation. Wall time is that of
the whole command on this machine, while whatever else ran on it ran too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, wherever this is started

from report import write_report

from pipeline.launch.job import read_result
from pipeline.tracking import journal

PACKAGES = ("torch", "ray", "mlflow", "opencv-python", "numpy")
ROOT = Path(__file__).resolve().parents[1]
QUICK = ["--train.steps", "20", "--train.evaluate_every", "20"]


def main() -> int:
    """Run every seed; print a table; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cityscapes", default="", help="tree in Cityscapes' layout; the mini city without")
    parser.add_argument("--recipe", default="laptop")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", default="runs", help="folder of data sets and runs")
    parser.add_argument("--quick", action="store_true", help="twenty steps: does it run at all")
    parser.add_argument("--json", help="write the rows there")
    arguments, settings = parser.parse_known_args()
    rows = [run(arguments, settings, seed) for seed in arguments.seeds]
    show(rows, arguments.recipe)
    if arguments.json:
        write_report(arguments.json, "train_recipe", rows, PACKAGES)
    return 0


def run(arguments: argparse.Namespace, settings: list[str], seed: int) -> dict[str, Any]:
    """The row of one seed; ends the benchmark where the run failed."""
    command = [sys.executable, "-m", "pipeline.launch.make_train", "--runs", arguments.runs]
    command += ["--cityscapes", arguments.cityscapes, "--recipe", arguments.recipe, "--"]
    command += [*settings, "--train.seed", str(seed), *(QUICK if arguments.quick else [])]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    result = read_result(lines)
    if result is None or result["exit_code"] != 0:
        sys.exit(f"seed {seed} failed; what it said is above")
    run_dir = Path(result["checkpoint"]).parents[1]
    keys = ("miou", "pixel_accuracy", "step", "samples_per_s", "data_wait_share", "wall_s")
    return (
        {"recipe": arguments.recipe, "seed": seed, "settings": settings}
        | {key: result[key] for key in keys}
        | {"iou": best_iou(run_dir)}
    )


def best_iou(run_dir: Path) -> dict[str, float]:
    """IoU by class at the best evaluation that the run's journal holds."""
    records = journal.read_journal(run_dir)
    scored = [r for r in records if isinstance(r, journal.Metrics) and "val/miou" in r.values]
    best = max(scored, key=lambda record: record.values["val/miou"])
    return {k.removeprefix("val/iou/"): v for k, v in best.values.items() if k.startswith("val/iou/")}


def show(rows: list[dict[str, Any]], recipe: str) -> None:
    """A table a person reads: a line a seed, then a line a class."""
    table = Table("seed", "mIoU", "pixel accuracy", "steps", "img/s", "whole command", title=recipe)
    for row in rows:
        table.add_row(
            str(row["seed"]), f"{row['miou']:.3f}", f"{row['pixel_accuracy']:.3f}", str(row["step"]),
            f"{row['samples_per_s']:.1f}", f"{row['wall_s']:.0f} s",
        )  # fmt: skip
    classes = Table("class", *[f"seed {row['seed']}" for row in rows], title="IoU by class")
    for name in rows[0]["iou"]:
        classes.add_row(name, *[f"{row['iou'].get(name, 0.0):.3f}" for row in rows])
    Console().print(table, classes)


if __name__ == "__main__":
    sys.exit(main())
