"""What a private cluster is started with; Ray itself is not needed for that."""

import os
import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.errors import ConfigError, WorldStateError
from pipeline.launch import ray_cluster
from pipeline.launch.ray_cluster import check_address, connected, refuse_other_nodes
from pipeline.launch.workers import Room


@pytest.mark.parametrize(
    ("address", "usable", "num_gpus"), [("", False, 0), ("", True, None), ("10.0.0.1:6379", False, None)]
)
def test_private_cluster_counts_no_gpu_that_torch_cannot_use(
    address: str, usable: bool, num_gpus: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    ray = SimpleNamespace(
        init=lambda **flags: asked.append(flags),
        cluster_resources=lambda: {"CPU": 2.0},
        shutdown=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(ray_cluster, "check_address", lambda address: None)
    monkeypatch.setattr(os, "environ", {"RAY_ADDRESS": address})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    with connected() as room:
        assert room == Room(cpus=2, gpus=0)
    assert asked[0]["num_gpus"] == num_gpus


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "ray://localhost:{}/"])
def test_address_where_nobody_listens_is_refused_at_once(form: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        check_address(form.format(port))
    with pytest.raises(WorldStateError, match=f"RAY_ADDRESS={form.format(port)}: Connection refused"):
        check_address(form.format(port))


@pytest.mark.parametrize(
    "address",
    ["nonsense", "http://127.0.0.1:8265", "127.0.0.1:", ":6379", "host:0", "host:65536", "ray://host"],
)
def test_what_is_no_address_is_refused_by_name(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_ADDRESS": address})
    with pytest.raises(ConfigError, match=f"RAY_ADDRESS={address} is no address"), connected():
        pass


def test_auto_is_left_to_ray() -> None:
    check_address("auto")


def nodes(*cpus: float, dead: int = 0) -> SimpleNamespace:
    """Ray with nodes of so many CPUs, and some that are gone."""
    alive = [{"Alive": True, "Resources": {"CPU": num} if num else {}} for num in cpus]
    gone = [{"Alive": False, "Resources": {"CPU": 8.0}}] * dead
    return SimpleNamespace(nodes=lambda: alive + gone)


def test_a_run_at_an_address_is_refused_where_several_nodes_may_get_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for alone in (nodes(2.0), nodes(0.0, 2.0), nodes(2.0, dead=2)):
        monkeypatch.setitem(sys.modules, "ray", alone)
        refuse_other_nodes("s3://bucket/runs")
    monkeypatch.setitem(sys.modules, "ray", nodes(2.0, 4.0, 0.0, dead=1))
    with pytest.raises(
        WorldStateError, match="--runs s3://bucket/runs is for one node, and this cluster has 2"
    ) as told:
        refuse_other_nodes("s3://bucket/runs")
    assert "type a --runs that all nodes mount" in str(told.value)
