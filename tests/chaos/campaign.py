"""Kills runs anywhere and looks whether each ends as if nothing had happened: `make chaos`.

    make chaos ARGS="--points 160 --ray-points 40 --remote-points 12 --seed 0 --work runs/chaos --json FILE"

Every point is a run that is killed at a seeded place and resumed, half of them at another world size; its
weights, optimizer state, samples, curves and checkpoints must be those of the undisturbed run, bit for bit.
A point that was through is a line of WORK/rows.jsonl and does not come again at the same commit; the folder
of one that differed stays to be looked at. Exit code 1 where any did, and where a kill that was planned did
not come. Whatever ends this ends all that it started.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from pipeline.launch.local_cluster import LocalCluster
from tests.chaos import summary
from tests.chaos.nursery_client import ROOT, Nursery
from tests.chaos.points import PHASES, WORLDS, Point, draw_points
from tests.chaos.points_run import Outcome, judged, prepared, torchrun_outcome, undisturbed
from tests.chaos.ray_runs import NUM_CPUS, environment_of, run_ray
from tests.chaos.remote_runs import Store, object_store
from tests.chaos.run_state import RunState, differences
from tests.chaos.summary import Row
from tests.chaos.torchrun_runs import REFERENCE_WORLD, make_shards


class Campaign:
    """All points of a seed, in one working folder; made and used by `main`."""

    def __init__(self, work: Path, seed: int, remote: bool, stack: ExitStack) -> None:
        """`remote` where there are points that need an object store."""
        self.work, self.seed = work, seed
        self.commit = _commit()
        self.shards = make_shards(work)
        self._store: Store | None = stack.enter_context(object_store()) if remote else None
        self.nursery = stack.enter_context(Nursery(self._store.environment if self._store else {}))
        self._references: dict[str, RunState] = {}
        self._cluster: LocalCluster | None = None
        stack.callback(self._end_head)

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
        # A store keeps what a point that was cut off has left, and MLflow what it was told, by its name.
        name = f"{point.name}-{secrets.token_hex(2)}"
        folder = self.work / (name if point.launcher == "remote" else point.name)
        for earlier in self.work.glob(f"{point.name}*"):
            shutil.rmtree(earlier)
        outcome = self._outcome(point, folder, name)
        row: Row = {"commit": self.commit, "seed": self.seed, "name": point.name, "moves": point.moves}
        row |= {"launcher": point.launcher, "phase": point.strike.phase, "determinism": point.determinism}
        row |= {"attempts": point.to_dict()["attempts"]} | asdict(outcome)
        with (self.work / "rows.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        if not outcome.wrong:
            shutil.rmtree(folder)
        return row

    def _outcome(self, point: Point, folder: Path, name: str) -> Outcome:
        reference, orders = self.reference(point.determinism), prepared(point, folder)
        if point.launcher != "ray":
            return torchrun_outcome(point, orders, self.shards, reference, self.nursery, self._store)
        run_dir = self.work / "ray" / name
        self._cluster = self._cluster or LocalCluster(num_cpus=NUM_CPUS).__enter__()
        environment = environment_of(self._cluster)
        outcome = judged(
            point, orders, run_dir, reference,
            lambda: run_ray(point, self.shards, orders, run_dir, environment),
        )  # fmt: skip
        if outcome.wrong:
            self._end_head()  # with whatever it still has of the point
        else:
            shutil.rmtree(run_dir)
        return outcome

    def _end_head(self) -> None:
        """End Ray's head and all that was started on it, by their pids."""
        if self._cluster:
            self._cluster.stop()
        self._cluster = None


def main() -> int:
    """Do all points that are not through yet; print a line each and a table."""
    arguments = _parse()
    counts = {"torchrun": arguments.points, "remote": arguments.remote_points, "ray": arguments.ray_points}
    points = [point for kind, count in counts.items() for point in draw_points(arguments.seed, count, kind)]
    work = Path(arguments.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of all that must be ended
    with ExitStack() as stack:
        campaign = Campaign(work, arguments.seed, counts["remote"] > 0, stack)
        done = {row["name"]: row for row in campaign.rows()}
        for number, point in enumerate(points, start=1):
            if point.name not in done:
                row = done[point.name] = campaign.run(point)
                said = "; ".join(row["wrong"]) or "identical"
                print(f"[{number}/{len(points)}] {point.name} ({row['seconds']:.0f} s): {said}", flush=True)
    rows = [done[point.name] for point in points]
    for line in summary.table(rows):
        print(line)
    missing, unplanned = summary.not_struck(summary.strikes(rows))
    for said, phases in (("planned and not struck", missing), ("no point drawn in", unplanned)):
        if phases:
            print(f"{said}: {', '.join(phases)}")
    if arguments.json:
        summary.write(Path(arguments.json), rows)
    return 1 if missing or any(row["wrong"] for row in rows) else 0


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
    parser.add_argument("--remote-points", type=int, default=2 * len(PHASES["remote"]), help="in a store")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default="runs/chaos", help="folder of all that is made; go on there")
    parser.add_argument("--json", help="write the rows there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
