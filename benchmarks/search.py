"""What a search saves, what it costs beside training, and whether what it finds is better than the defaults.

    make bench BENCH=search ARGS="--cityscapes TREE --work runs/search-bench --json FILE"

The product's own command on a Ray head of two CPUs, a small network, one drive held out of training. The same
trials (Sobol points: no score changes them) are searched three times: with successive halving; with its
driver killed while two trials run, and then typed again; and each trained to the end. Rank agreement and
regret are of the scores that all have in full. Then halving's winner and the defaults are trained again with
fresh seeds, and compared seed by seed. A search that is over lies in WORK and does not come again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, wherever this is started

from report import machine, write_report
from searches.one_search import ROOT, SearchBench, Searched, mlflow_runs
from searches.rows import agreement, same_trials, search_row, winner_deltas

from pipeline.launch.local_cluster import LocalCluster

PACKAGES = ("torch", "ray", "mlflow", "scipy", "numpy")
NETWORK = {
    "data.input_height": 90, "data.input_width": 120, "data.crop_height": 90, "data.crop_width": 120,
    "model.backbone.base_width": 16, "model.head.dim": 32, "train.batch_global": 8,
    "optim.warmup_steps": 15, "tracking.registered_model": "", "train.metrics_every": 1,
}  # fmt: skip
"""Some seconds of training an evaluation on one core. A point a step, so that repeated steps are seen."""
QUICK = {
    "data.input_height": 64, "data.input_width": 128, "data.crop_height": 64, "data.crop_width": 128,
    "model.backbone.base_width": 8, "model.head.dim": 16, "optim.warmup_steps": 2,
}  # fmt: skip
QUICK_TRIALS, QUICK_STEPS, QUICK_EVERY = 5, 18, 2
NUM_CPUS = 2


def main() -> int:
    """Search; print a line a result; write JSON where asked to."""
    arguments = parse()
    load = os.getloadavg()[0]
    print(f"on {machine()}, load {load:.1f}", flush=True)
    if arguments.work:
        rows, found = measure(arguments, Path(arguments.work).resolve())
    else:
        with tempfile.TemporaryDirectory(prefix="bench-search-") as scratch:
            rows, found = measure(arguments, Path(scratch))
    if arguments.quick:
        print("A smoke run: it is too short for its figures to mean anything.")
    if arguments.json:
        command = f'make bench BENCH=search ARGS="{shlex.join(sys.argv[1:])}"'
        write_report(arguments.json, "search", rows, PACKAGES, {"command": command, "load": load, **found})
    return 0


def parse() -> argparse.Namespace:
    """What was typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cityscapes", default="", help="tree in Cityscapes' layout; the mini city without")
    parser.add_argument("--recipe", default="camvid", help="what all trials begin from")
    parser.add_argument("--work", default="", help="folder of shards, searches and what was found of them")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=270, help="of a full training")
    parser.add_argument("--every", type=int, default=30, help="steps between two evaluations")
    parser.add_argument("--reduction", type=int, default=3, help="of successive halving")
    parser.add_argument("--repeat", type=int, default=3, help="fresh seeds of winner and defaults")
    parser.add_argument("--quick", action="store_true", help="some steps on drawn streets: does it run")
    parser.add_argument("--json", help="write the rows there")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.trials, arguments.steps, arguments.every = QUICK_TRIALS, QUICK_STEPS, QUICK_EVERY
        arguments.repeat = 1
    return arguments


def measure(arguments: argparse.Namespace, work: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The row of all that was searched, and what there is to say of each search."""
    shards = make_shards(work, arguments.cityscapes)
    network = {**NETWORK, **(QUICK if arguments.quick else {}), "data.decoded_cache": str(work / "decoded")}
    settings = ["--recipe", arguments.recipe]
    settings += [word for name, value in network.items() for word in (f"--{name}", str(value))]
    with LocalCluster(num_cpus=NUM_CPUS) as cluster:
        bench = SearchBench(cluster, shards, work, settings)
        asha = bench.run("asha", words(arguments), "asha")
        tell("asha", asha)
        killed = bench.run("killed", words(arguments), "killed", kill=True)
        tell("killed", killed)
        left_over = bench.left_over()
        full = bench.run("full", words(arguments, "--scheduler", "none"), "full")
        tell("full", full)
        again = bench.run(
            "asha", words(arguments, "--repeat", str(arguments.repeat), "--finalists", "1"), "repeated"
        )
    survived = surviving(asha, killed, arguments.every) | {"processes_left": left_over}
    print(f"killed while {survived['running']} ran: {survived}", flush=True)
    row = summary(asha, full, again)
    print("\n".join(f"{name}: {value}" for name, value in row.items()), flush=True)
    searches = {"asha": asha, "killed": killed, "full": full}
    return [row], {
        "searches": [search_row(name, searched) for name, searched in searches.items()],
        "survived": survived,
        "full_scores": {str(trial.number): [p.score for p in trial.points] for trial in full.record.trials},
    }


def words(arguments: argparse.Namespace, *more: str) -> list[str]:
    """What is typed for a search beside its name."""
    typed = ["--trials", str(arguments.trials), "--algorithm", "sobol", "--train.steps", str(arguments.steps)]
    typed += ["--train.evaluate_every", str(arguments.every)]
    typed += ["--train.checkpoint_every", str(arguments.every)]
    halving = [] if "--scheduler" in more else ["--reduction", str(arguments.reduction)]
    return [*typed, *halving, *more]


def surviving(asha: Searched, killed: Searched, every: int) -> dict[str, Any]:
    """What is left of a killed search beside an undisturbed one."""
    parents, children = mlflow_runs(killed.result, killed.record.name)
    return {
        "running": list(killed.killed_while_running),
        "same_trials": same_trials(asha.record, killed.record),
        "mlflow_parents": parents,
        "mlflow_children": children,
        "steps": sum(trial.step for trial in killed.record.trials),
        "executed_steps": killed.executed_steps,
        "may_be_executed": sum(trial.step for trial in killed.record.trials)
        + every * len(killed.killed_while_running),
        "wall_ratio": round(killed.wall_s / asha.wall_s, 3),
    }


def summary(asha: Searched, full: Searched, again: Searched) -> dict[str, Any]:
    """The row: what halving saves, what it costs, what its winner is worth."""
    winner, deltas = winner_deltas(again.record)
    return {
        "trials": len(asha.record.trials),
        "stopped": search_row("asha", asha)["stopped"],
        "time_saved": round(1 - asha.wall_s / full.wall_s, 3),
        "steps_saved": round(1 - asha.executed_steps / full.executed_steps, 3),
        "overhead_s_per_trial": search_row("full", full)["overhead_s_per_trial"],
        "winner": winner,
        "winner_name": again.record.trials[winner].name,
        "winner_delta_miou": round(statistics.fmean(deltas), 4) if deltas else None,
        "winner_deltas_miou": [round(delta, 4) for delta in deltas],
        **agreement(asha.record, full.record),
    }


def tell(name: str, searched: Searched) -> None:
    """A line of a search that is over."""
    print(", ".join(f"{key} {value}" for key, value in search_row(name, searched).items()), flush=True)


def make_shards(work: Path, tree: str) -> Path:
    """The tree packed in WORK, once; without a tree a mini city of three streets is drawn first."""
    work.mkdir(parents=True, exist_ok=True)
    shards, drawn = work / "shards", work / "tree"
    if not tree and not drawn.exists():
        run("jobs/make_mini_city.py", "--out", str(drawn), "--train", "9", "--val", "4")
    if not (shards / "manifest.json").exists():
        run("jobs/pack_cityscapes.py", "--root", tree or str(drawn), "--out", str(shards))
    return shards


def run(*command: str) -> None:
    """One of the product's commands; ends the benchmark with its words where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    sys.exit(main())
