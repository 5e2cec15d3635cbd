"""A small, fixed part of `make chaos`, and the proof that it finds what it is there for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.chaos.planted import BUGS
from tests.chaos.points import RANK_PHASES, WORLDS, Attempt, Point, Strike, draw_points
from tests.chaos.points_run import judged, prepared, undisturbed
from tests.chaos.run_state import RunState, differences
from tests.chaos.torchrun_runs import REFERENCE_WORLD, RUN_NAME, Nursery, make_shards, run_torchrun

SEED = 5


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chaos")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture(scope="module")
def reference(work: Path, nursery: Nursery) -> Callable[[str, int], RunState]:
    @cache
    def make(determinism: str, world: int) -> RunState:
        return undisturbed(make_shards(work), work / f"{determinism}-{world}", world, determinism, nursery)

    return make


def wrong(point: Point, reference: RunState, work: Path, nursery: Nursery, planted: str = "") -> list[str]:
    orders = prepared(point.attempts, work / f"{point.name}{planted}", planted)
    shards = make_shards(work)
    return judged(
        orders, orders.folder / RUN_NAME, reference, lambda: run_torchrun(point, shards, orders, nursery)
    ).wrong


@pytest.mark.parametrize("world", WORLDS[1:])
def test_undisturbed_runs_of_any_number_of_ranks_are_one(world: int, reference) -> None:
    assert differences(reference("elastic", world), reference("elastic", WORLDS[0])) == []


@pytest.mark.parametrize(
    "point", draw_points(SEED, len(RANK_PHASES), "torchrun"), ids=lambda point: point.name
)
def test_killed_anywhere_it_ends_as_if_nothing_had_happened(point: Point, reference, work, nursery) -> None:
    assert wrong(point, reference(point.determinism, REFERENCE_WORLD[point.determinism]), work, nursery) == []


def killed(phase: str, step: int, world: int = 1) -> Point:
    strike = Strike(phase, step, rank=0, fraction=0.4, whole_machine=True)
    return Point(0, "torchrun", "elastic", (Attempt(world, strike), Attempt(world, None)))


@pytest.mark.parametrize(
    ("bug", "point", "seen_as"),
    [
        ("momentum_dropped", killed("forward", 5), "tensors: "),
        ("position_off_by_one", killed("forward", 5), "trained on positions"),
        ("commit_first", killed("write", 4), "left over: checkpoints/damaged-"),
        ("dropout_by_rank", killed("forward", 5), "states: "),
        ("metric_twice", killed("forward", 2), "recorded 2 times"),
        (
            "buffers_of_other_ranks_dropped",
            killed("forward", 5, world=2),
            "ranks hold different weights or buffers",
        ),
    ],
)
def test_a_planted_bug_is_found(bug: str, point: Point, seen_as: str, reference, work, nursery) -> None:
    found = wrong(point, reference("elastic", 1), work, nursery, bug)
    assert any(seen_as in line for line in found), found


def test_every_planted_bug_has_its_test() -> None:
    (mark,) = test_a_planted_bug_is_found.pytestmark
    assert {case[0] for case in mark.args[1]} == set(BUGS)
