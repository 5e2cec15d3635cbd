"""A point: its attempts are run, then all that is left of it is compared with the undisturbed run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.chaos.history import history_wrong
from tests.chaos.hits import Hit, missed, read_hits
from tests.chaos.nursery_client import Nursery
from tests.chaos.points import LOADER_WORKER, Attempt, Point
from tests.chaos.rank import Orders
from tests.chaos.remote_runs import Store
from tests.chaos.run_state import RunState, differences, read_run
from tests.chaos.torchrun_runs import RUN_NAME, run_torchrun


@dataclass(frozen=True)
class Outcome:
    """What became of a point."""

    struck: list[Hit] = field(default_factory=list)
    """The kills that came."""
    wrong: list[str] = field(default_factory=list)
    """All in which it is not the undisturbed run; nothing, if it is."""
    seconds: float = 0.0


def prepared(point: Point, folder: Path, planted: str = "") -> Orders:
    """The folder of a point, and what is to happen in it."""
    (folder / "notes").mkdir(parents=True)
    strikes = tuple(attempt.strike for attempt in point.attempts)
    return Orders(folder, strikes, planted, point.launcher == "remote", point.loader_workers)


def judged(
    point: Point, orders: Orders, run_dir: Path, reference: RunState, run: Callable[[], list[str]]
) -> Outcome:
    """The outcome of a point whose attempts `run` does, in that folder of a run."""
    begin_s = time.monotonic()
    wrong, hits = run(), read_hits(orders.folder)
    if not wrong:
        found, wrong = read_run(run_dir, orders.folder / "notes")
        wrong += differences(found, replace(reference, worker_restarts=worker_restarts(point)))
        wrong += history_wrong(run_dir, point, reference.commits)
        wrong += filter(None, [missed(point.attempts, hits)])
    return Outcome(hits, wrong, round(time.monotonic() - begin_s, 2))


def torchrun_outcome(
    point: Point, orders: Orders, shards: str, reference: RunState, nursery: Nursery, store: Store | None
) -> Outcome:
    """The outcome of a point under torchrun, whose run is kept in its folder, or in the store."""
    if not orders.remote:
        run_dir = orders.folder / RUN_NAME
        return judged(point, orders, run_dir, reference, lambda: run_torchrun(point, shards, orders, nursery))
    assert store is not None
    runs, folder = store.address(orders.folder), orders.folder

    def run() -> list[str]:
        return run_torchrun(point, shards, orders, nursery, runs) or store.other_than(folder)

    return judged(point, orders, store.copy(folder), reference, run)


def worker_restarts(point: Point) -> int:
    """How many loader workers of rank 0, which has the curves, are killed beside their rank."""
    strikes = [attempt.strike for attempt in point.attempts if attempt.strike]
    return sum(strike.phase == LOADER_WORKER and strike.rank == 0 for strike in strikes)


def undisturbed(shards: str, folder: Path, world: int, determinism: str, nursery: Nursery) -> RunState:
    """The run of so many ranks that nothing happens to; from its folder, where it was done before."""
    point = Point(0, "torchrun", determinism, (Attempt(world, None),))
    if not (folder / "done").exists():
        wrong = run_torchrun(point, shards, prepared(point, folder), nursery)
        assert wrong == [], f"undisturbed: {wrong}: {(folder / 'log').read_text()[-1000:]}"
        (folder / "done").touch()
    found, wrong = read_run(folder / RUN_NAME, folder / "notes")
    wrong += history_wrong(folder / RUN_NAME, point, found.commits)
    assert wrong == [], wrong
    return found
