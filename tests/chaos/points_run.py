"""A point: its attempts are run, then all that is left of it is compared with the undisturbed run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.points import Attempt
from tests.chaos.rank import Orders
from tests.chaos.run_state import RunState, differences, read_run
from tests.chaos.torchrun_runs import RUN_NAME, Nursery, struck, typed


@dataclass(frozen=True)
class Outcome:
    """What became of a point."""

    struck: list[str] = field(default_factory=list)
    """Where in its phase each kill came."""
    wrong: list[str] = field(default_factory=list)
    """All in which it is not the undisturbed run; nothing, if it is."""
    seconds: float = 0.0


def prepared(attempts: tuple[Attempt, ...], folder: Path, planted: str = "") -> Orders:
    """The folder of a point, and what is to happen in it."""
    (folder / "notes").mkdir(parents=True)
    return Orders(folder, tuple(attempt.strike for attempt in attempts), planted)


def judged(orders: Orders, run_dir: Path, reference: RunState, run: Callable[[], list[str]]) -> Outcome:
    """The outcome of a point whose attempts `run` does, in that folder of a run."""
    begin_s = time.monotonic()
    wrong = run()
    if not wrong:
        found, amiss = read_run(run_dir, orders.folder / "notes")
        wrong = amiss + differences(found, reference)
    return Outcome(struck(orders.folder), wrong, round(time.monotonic() - begin_s, 2))


def undisturbed(shards: str, folder: Path, world: int, determinism: str, nursery: Nursery) -> RunState:
    """The run of so many ranks that nothing happens to; from its folder, where it was done before."""
    if not (folder / "done").exists():
        orders = prepared((Attempt(world, None),), folder)
        code = nursery.attempt(orders, world, typed(shards, folder, determinism))
        assert code == 0, f"the undisturbed run ended with {code}: {(folder / 'log').read_text()[-1000:]}"
        (folder / "done").touch()
    found, wrong = read_run(folder / RUN_NAME, folder / "notes")
    assert wrong == [], wrong
    return found
