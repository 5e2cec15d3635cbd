"""A drain counts where it takes a node of the attempt, and Ray is asked once a second."""

import pytest

from pipeline.launch import drains
from pipeline.launch.drains import DrainWatch


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times of the questions to a Ray that drains the nodes `b` and `c`."""
    clock, asked = iter(range(0, 100_000, 300)), []
    monkeypatch.setattr(drains.time, "monotonic", lambda: next(clock) / 1000)

    def draining() -> dict[str, int]:
        asked.append(len(asked))
        return {"b" * 56: 0, "c" * 56: 1_700_000_000_000}

    monkeypatch.setattr(drains.state, "get_draining_nodes", draining)
    return asked


@pytest.mark.parametrize(("nodes", "going"), [("a", False), ("ab", True), ("bc", True), ("", False)])
def test_drain_of_a_node_of_the_attempt_is_seen(nodes: str, going: bool, asked: list[float]) -> None:
    watch = DrainWatch()
    assert any(watch.seen([node * 56 for node in nodes]) for _ in range(8)) == going


def test_ray_is_asked_once_a_second(asked: list[float]) -> None:
    watch = DrainWatch()
    for _ in range(40):  # of 0.3 s each
        watch.seen(["a" * 56])
    assert len(asked) == 10
