"""How many processes are ordered in reserve, by raylets that only count."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import ClassVar

import grpc
import pytest

from pipeline.launch import spares
from pipeline.launch.pulse import Place
from pipeline.launch.spares import TRAIN_ACTORS, Spares, _merged


class Raylet:
    """Starts what is ordered at once, or refuses."""

    pids: ClassVar[dict[str, set[int]]] = {}
    orders: ClassVar[list[tuple[str, int]]] = []
    refuses = False

    def __init__(self, node: str) -> None:
        self.node = node

    def processes(self) -> set[int]:
        return set(self.pids.setdefault(self.node, {1, 2}))

    def start(self, environment: str, count: int) -> None:
        if self.refuses:
            raise grpc.RpcError
        self.orders.append((self.node, count))
        first = 1000 * (len(self.orders) + 1)
        self.pids[self.node] |= set(range(first, first + count))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """Processes of this node that no longer wait for work."""
    at_work: set[int] = set()
    context = SimpleNamespace(get_node_id=lambda: "here", get_runtime_env_string=lambda: "{}")
    monkeypatch.setattr(spares.ray, "get_runtime_context", lambda: context)
    monkeypatch.setattr(spares, "_Raylet", Raylet)
    monkeypatch.setattr(spares, "_is_idle", lambda pid: pid not in at_work)
    monkeypatch.setattr(spares, "CALM_S", 0.0)
    monkeypatch.setattr(spares, "POLL_S", 0.001)
    monkeypatch.setattr(Raylet, "pids", {})
    monkeypatch.setattr(Raylet, "orders", [])
    return at_work


def filled(reserve: Spares, *places: tuple[str, int]) -> None:
    reserve.fill([Place(node, pid, 0.0, "") for node, pid in places])
    assert reserve._thread is not None
    reserve._thread.join(10)
    assert not reserve._thread.is_alive()


def total(node: str) -> int:
    return sum(count for ordered, count in Raylet.orders if ordered == node)


def test_each_node_gets_one_for_each_of_its_ranks_and_the_drivers_those_of_ray_train(taken) -> None:
    filled(Spares(), ("here", 1), ("there", 1), ("there", 2))
    assert (total("here"), total("there")) == (1 + TRAIN_ACTORS, 2)
    assert max(count for _, count in Raylet.orders) <= 2, "a raylet drops what is beyond its CPUs"


def test_reserve_is_filled_up_after_each_restart_and_never_grows(taken) -> None:
    reserve = Spares()
    filled(reserve, ("here", 1), ("here", 2))
    whole = total("here")
    for restart in range(1, 5):
        idle = sorted(reserve._ordered["here"])
        ranks, actors = idle[:2], idle[2:5]
        Raylet.pids["here"] -= taken  # what the attempt before was made of is gone
        taken |= set(actors) | set(ranks)
        filled(reserve, *(("here", pid) for pid in ranks))
        assert total("here") == (1 + restart) * whole
        assert len(reserve._ordered["here"]) == whole


def test_reserve_that_was_not_needed_is_left_as_it_is(taken) -> None:
    reserve = Spares()
    filled(reserve, ("here", 1))
    orders = list(Raylet.orders)
    filled(reserve, ("here", 2))
    assert orders == Raylet.orders


def test_raylet_that_refuses_costs_the_reserve_and_nothing_else(taken, monkeypatch) -> None:
    monkeypatch.setattr(Raylet, "refuses", True)
    filled(Spares(), ("here", 1))
    assert Raylet.orders == []


def test_attempt_that_ends_early_orders_nothing(taken, monkeypatch) -> None:
    monkeypatch.setattr(spares, "CALM_S", 60.0)
    reserve = Spares()
    reserve.fill([Place("here", 1, 0.0, "")])
    reserve.pause()
    assert Raylet.orders == []


def test_environment_is_spelt_as_rays_core_spells_it() -> None:
    merged = _merged('{"working_dir": "gcs://x.zip", "env_vars": {"B": "1"}}', {"A": "ö"})
    assert merged == '{"env_vars":{"A":"ö","B":"1"},"working_dir":"gcs://x.zip"}'
    assert _merged("", {}) == '{"env_vars":{}}'
