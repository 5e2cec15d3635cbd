"""The wait for room, on a clock that only the pauses move and a cluster that is a list of numbers."""

import itertools
from collections.abc import Iterable

import pytest

from pipeline.config import Config
from pipeline.errors import Preempted
from pipeline.launch import room
from pipeline.launch.room import SETTLE_S, Ranks, ranks_on, wait_for_room
from pipeline.launch.workers import Workers
from pipeline.launch.world_size import WorldRange
from pipeline.settings import with_settings

EACH = Workers(4, 2, use_gpu=False)
CONFIG = with_settings(Config(), {"train.batch_global": 8, "launch.workers_wait_s": 60})


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(room.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    return now


def wait(
    free: Iterable[int], least: int, most: int, *, in_all: int = 9, stop: bool = False, bound_s: int = 60
) -> int:
    """The world that is begun with while there is room for so many ranks at one look after the other."""
    looks = iter(free)
    config = with_settings(CONFIG, {"launch.workers_wait_s": bound_s})
    return wait_for_room(
        config, WorldRange(least, most), EACH, lambda: stop, lambda _: Ranks(next(looks), in_all)
    )


def test_the_most_that_divide_the_batch_are_begun_with_at_once(clock: list[float]) -> None:
    assert wait([4], 2, 4) == 4
    assert wait([9], 2, 7) == 4, "8 samples do not part into 7, 6 or 5"
    assert clock[0] == 0


def test_cpus_that_come_back_soon_are_waited_for(clock: list[float]) -> None:
    assert wait(itertools.chain([0, 2, 3, 3], itertools.repeat(4)), 2, 4) == 4
    assert clock[0] < SETTLE_S


def test_nobody_waits_for_more_than_the_nodes_have(clock: list[float]) -> None:
    assert wait([2], 1, 8, in_all=3) == 2, "three do not divide the batch"
    assert clock[0] == 0


@pytest.mark.parametrize(("free", "least", "size"), [([0, 0, 2], 2, 2), ([0, 0, 1], 1, 1)])
def test_bound_below_the_time_in_which_cpus_come_back_ends_no_job(
    free: list[int], least: int, size: int, clock: list[float]
) -> None:
    """It is dead ranks' own CPUs that are on their way, or room for some of an elastic job."""
    coming = itertools.chain(itertools.repeat(free[0], 20), itertools.repeat(free[-1]))
    assert wait(coming, least, 2, bound_s=1) == size
    assert clock[0] <= SETTLE_S + 0.2


def test_fewer_ranks_are_begun_with_after_a_moment(clock: list[float]) -> None:
    assert wait(itertools.repeat(3), 2, 4) == 2, "three do not divide the batch"
    assert SETTLE_S <= clock[0] < SETTLE_S + 1


def test_the_fewest_are_waited_for_a_bounded_time(clock: list[float]) -> None:
    with pytest.raises(Preempted, match=r"no room for 2 workers within 60s.*go on"):
        wait(itertools.repeat(1), 2, 4)
    assert 60 <= clock[0] < 61


def test_nodes_that_come_in_the_meantime_end_the_wait(clock: list[float]) -> None:
    assert wait(itertools.chain([1] * 300, itertools.repeat(2)), 2, 4) == 2
    assert 30 <= clock[0] < 31


@pytest.mark.parametrize("free", [1, 4])
def test_a_stop_ends_the_wait_and_begins_no_attempt_where_there_is_room(free: int) -> None:
    with pytest.raises(Preempted, match="stopped before workers began"):
        wait(itertools.repeat(free), 2, 4, stop=True)


def test_dead_and_drained_nodes_have_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"NodeID": name, "Alive": name != "dead", "Resources": {"CPU": 8.0}}
        for name in ("a", "b", "dead", "drained", "new")
    ]
    monkeypatch.setattr(room, "give_back_of_dead_controllers", lambda: None)
    monkeypatch.setattr(room.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(room.state, "get_draining_nodes", lambda: {"drained": 0})
    free = {"a": {"CPU": 5.0}, "b": {"CPU": 2.0}, "dead": {"CPU": 8.0}, "drained": {"CPU": 8.0}}
    monkeypatch.setattr(room, "available_resources_per_node", lambda: free)
    assert room.ranks_now(EACH) == Ranks(2 + 1, 4 + 4 + 4)


@pytest.mark.parametrize(
    ("free", "use_gpu", "ranks"),
    [
        ({"CPU": 7.0}, False, 3),
        ({"CPU": 1.9}, False, 0),
        ({}, False, 0),
        ({"CPU": 7.0, "GPU": 2.0}, True, 2),
        ({"CPU": 3.0, "GPU": 8.0}, True, 1),
        ({"CPU": 7.0}, True, 0),
    ],
)
def test_ranks_on_a_node_are_as_many_as_cpus_and_gpus_allow(free, use_gpu: bool, ranks: int) -> None:
    assert ranks_on(free, Workers(1, 2, use_gpu=use_gpu)) == ranks
