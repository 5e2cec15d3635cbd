"""A small, fixed part of `make chaos`, and the proof that it finds what it is there for."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import psutil
import pytest

from tests.chaos.nursery_client import Nursery
from tests.chaos.planted import BUGS
from tests.chaos.points import PHASES, WORLDS, Attempt, Point, Strike, draw_points
from tests.chaos.points_run import prepared, torchrun_outcome, undisturbed
from tests.chaos.remote_runs import Store, object_store
from tests.chaos.run_state import RunState, differences
from tests.chaos.torchrun_runs import REFERENCE_WORLD, make_shards, typed

SEED = 1722
"""One whose points are of all world sizes, and few ranks."""
REMOTE = Point(
    0, "remote", "elastic",
    (Attempt(2, Strike("upload_files", 4, 0, 0.5, whole_machine=True, machine_gone=True)), Attempt(1, None)),
)  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with object_store() as store:
        yield store


@pytest.fixture(scope="module")
def nursery(store: Store) -> Iterator[Nursery]:
    with Nursery(store.environment) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def reference(work: Path, nursery: Nursery) -> Callable[[str, int], RunState]:
    @cache
    def make(determinism: str, world: int) -> RunState:
        return undisturbed(make_shards(work), work / f"{determinism}-{world}", world, determinism, nursery)

    return make


@pytest.fixture(scope="module")
def wrong(
    work: Path, nursery: Nursery, store: Store, reference: Callable[[str, int], RunState]
) -> Callable[..., list[str]]:
    def run(point: Point, planted: str = "") -> list[str]:
        orders = prepared(point, work / f"{point.name}{planted}", planted)
        expected = reference(point.determinism, REFERENCE_WORLD[point.determinism])
        return torchrun_outcome(point, orders, make_shards(work), expected, nursery, store).wrong

    return run


@pytest.mark.parametrize("world", WORLDS[1:])
def test_undisturbed_runs_of_any_number_of_ranks_are_one(world: int, reference) -> None:
    assert differences(reference("elastic", world), reference("elastic", WORLDS[0])) == []


@pytest.mark.parametrize(
    "point", [*draw_points(SEED, len(PHASES["torchrun"]), "torchrun"), REMOTE], ids=lambda point: point.name
)
def test_killed_anywhere_it_ends_as_if_nothing_had_happened(point: Point, wrong) -> None:
    assert wrong(point) == []


def killed(phase: str, step: int, world: int = 1) -> Point:
    strike = Strike(phase, step, rank=0, fraction=0.4, whole_machine=True)
    return Point(0, "torchrun", "elastic", (Attempt(world, strike), Attempt(world, None)))


@pytest.mark.parametrize(
    ("bug", "point", "seen_as"),
    [
        ("momentum_dropped", killed("forward", 5), "tensors: "),
        ("position_off_by_one", killed("forward", 5), "trained on positions"),
        ("commit_first", killed("write", 4), "left over: checkpoints/damaged-"),
        ("commit_of_upload_first", REMOTE, "the store has another checkpoints/"),
        ("older_checkpoint", killed("snapshot", 6), "began at step 3, not at 4 to 4"),
        ("seams_gone", killed("forward", 5), "to be killed in ['forward'], killed in []"),
        ("dropout_by_rank", killed("forward", 5), "states: "),
        ("metric_twice", killed("forward", 2), "recorded 2 times"),
        (
            "buffers_of_other_ranks_dropped",
            killed("forward", 5, world=2),
            "ranks hold different weights or buffers",
        ),
    ],
)
def test_a_planted_bug_is_found(bug: str, point: Point, seen_as: str, wrong) -> None:
    found = wrong(point, bug)
    assert any(seen_as in line for line in found), found


def test_an_attempt_that_does_not_end_is_killed_with_all_that_it_started(work, nursery) -> None:
    point = killed("forward", 5, world=2)
    orders = prepared(point, work / "stuck")
    ending = nursery.attempt(orders, 2, typed(point, make_shards(work), str(orders.folder)), timeout_s=0.3)
    assert (ending.stuck, ending.code, ending.left) == (True, -signal.SIGKILL, [])
    assert psutil.Process(nursery.pid).children(recursive=True) == []
    assert "did not end by itself" in ending.other_than(point.strike, [])


def test_every_planted_bug_has_its_test() -> None:
    (mark,) = test_a_planted_bug_is_found.pytestmark
    assert {case[0] for case in mark.args[1]} == set(BUGS)
