"""Kills runs anywhere and looks whether each ends as if nothing had happened: `make chaos`.

    make chaos ARGS="--points 160 --ray-points 40 --seed 0 --work runs/chaos --json FILE"

Every point is a run that is killed at a seeded place and resumed, half of them at another world size; its
weights, optimizer state, samples, curves and checkpoints must be those of the undisturbed run, bit for bit.
A point that was through is a line of WORK/rows.jsonl and does not come again at the same commit; the folder
of one that differed stays to be looked at. Exit code 1 where any did.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.launch.local_cluster import LocalCluster
from tests.chaos.points import WORLDS, Point, draw_points
from tests.chaos.points_run import judged, prepared, undisturbed
from tests.chaos.ray_runs import NUM_CPUS, environment_of, run_ray
from tests.chaos.run_state import RunState, differences
from tests.chaos.torchrun_runs import REFERENCE_WORLD, ROOT, RUN_NAME, Nursery, make_shards, run_torchrun

Row = dict[str, Any]


class Campaign:
    """All points of a seed, in one working folder; made and used by `main`."""

    def __init__(self, work: Path, seed: int, stack: ExitStack) -> None:
        self.work, self.seed, self._stack = work, seed, stack
        self.commit = _commit()
        self.shards = make_shards(work)
        self.nursery = stack.enter_context(Nursery())
        self._references: dict[str, RunState] = {}
        self._cluster: LocalCluster | None = None

    def rows(self) -> list[Row]:
        """What is known of the points of this seed at this commit."""
        path = self.work / "rows.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines]
        return [row for row in found if (row["commit"], row["seed"]) == (self.commit, self.seed)]

    def reference(self, determinism: str) -> RunState:
        """The undisturbed run; of `elastic` the same one at all world sizes, which is looked at first."""
        if determinism not in self._references:
            self._references[determinism] = self._undisturbed(determinism, REFERENCE_WORLD[determinism])
            for world in WORLDS if determinism == "elastic" else ():
                other = differences(self._undisturbed(determinism, world), self._references[determinism])
                assert other == [], f"undisturbed, {world} ranks give other numbers: {other}"
        return self._references[determinism]

    def _undisturbed(self, determinism: str, world: int) -> RunState:
        folder = self.work / f"undisturbed-{determinism}-{world}-{self.commit[:12]}"
        if folder.exists() and not (folder / "done").exists():
            shutil.rmtree(folder)
        return undisturbed(self.shards, folder, world, determinism, self.nursery)

    def run(self, point: Point) -> Row:
        """Do a point; its row, which is on the disk."""
        reference = self.reference(point.determinism)
        folder = self.work / point.name
        shutil.rmtree(folder, ignore_errors=True)
        # MLflow keeps what a point that was cut off has told it, under the name that it had.
        name = f"{point.name}-{secrets.token_hex(2)}"
        run_dir = self.work / "ray" / name if point.launcher == "ray" else folder / RUN_NAME
        orders = prepared(point.attempts, folder)
        run: Callable[[], list[str]]
        if point.launcher == "ray":
            environment = environment_of(self._head())
            run = lambda: run_ray(point, self.shards, orders, run_dir, environment)  # noqa: E731
        else:
            run = lambda: run_torchrun(point, self.shards, orders, self.nursery)  # noqa: E731
        outcome = judged(orders, run_dir, reference, run)
        row = {"commit": self.commit, "seed": self.seed, "name": point.name, "moves": point.moves}
        row |= {"launcher": point.launcher, "phase": point.strike.phase, "determinism": point.determinism}
        row |= {"attempts": point.to_dict()["attempts"]} | vars(outcome)
        with (self.work / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if not outcome.wrong:
            for left in (folder, run_dir):
                shutil.rmtree(left, ignore_errors=True)
        return row

    def _head(self) -> LocalCluster:
        if self._cluster is None:
            self._cluster = self._stack.enter_context(LocalCluster(num_cpus=NUM_CPUS))
        return self._cluster


def main() -> int:
    """Do all points that are not through yet; print a line each and a table."""
    arguments = _parse()
    points = draw_points(arguments.seed, arguments.points, "torchrun")
    points += draw_points(arguments.seed, arguments.ray_points, "ray")
    work = Path(arguments.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        campaign = Campaign(work, arguments.seed, stack)
        done = {row["name"]: row for row in campaign.rows()}
        for number, point in enumerate(points, start=1):
            if point.name not in done:
                row = done[point.name] = campaign.run(point)
                said = "; ".join(row["wrong"]) or "identical"
                print(f"[{number}/{len(points)}] {point.name} ({row['seconds']:.0f} s): {said}", flush=True)
    rows = [done[point.name] for point in points]
    for line in table(rows):
        print(line)
    if arguments.json:
        _write(Path(arguments.json), rows)
    return 1 if any(row["wrong"] for row in rows) else 0


def table(rows: list[Row]) -> Iterator[str]:
    """How many points of each launcher and phase ended bit for bit as the undisturbed run."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["launcher"], row["phase"]].append(row)
        groups[row["launcher"], "all"].append(row)
    yield f"| {'launcher':<8} | {'killed in':<13} | points | at another world size | identical |"
    yield "|---|---|---|---|---|"
    for (launcher, phase), group in sorted(
        groups.items(), key=lambda item: (item[0][0], item[0][1] == "all")
    ):
        moved, same = sum(row["moves"] for row in group), sum(not row["wrong"] for row in group)
        yield f"| {launcher:<8} | {phase:<13} | {len(group)} | {moved} | {same} |"


def _write(path: Path, rows: list[Row]) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from report import write_report

    command = f'make chaos ARGS="{shlex.join(sys.argv[1:])}"'
    write_report(str(path), "chaos", rows, ("torch", "ray", "mlflow"), {"command": command})


def _commit() -> str:
    """The commit of the checkout, and the moment where something in it is not committed."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    return git("rev-parse", "HEAD") + (f"+{time.time():.0f}" if git("status", "--porcelain") else "")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--points", type=int, default=160, help="under torchrun")
    parser.add_argument("--ray-points", type=int, default=40, help="under Ray Train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default="runs/chaos", help="folder of all that is made; go on there")
    parser.add_argument("--json", help="write the rows there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
