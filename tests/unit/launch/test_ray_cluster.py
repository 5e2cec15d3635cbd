"""What a private cluster is started with; Ray itself is not needed for that."""

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.launch.ray_cluster import connected
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
    monkeypatch.setattr(os, "environ", {"RAY_ADDRESS": address})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    with connected() as room:
        assert room == Room(cpus=2, gpus=0)
    assert asked[0]["num_gpus"] == num_gpus
