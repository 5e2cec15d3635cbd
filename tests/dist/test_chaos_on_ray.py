"""A fixed part of `make chaos` on real Ray; tests/chaos has what runs under torchrun."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.nursery_client import Nursery
from tests.chaos.points import Attempt, Point, Strike
from tests.chaos.points_run import judged, prepared, undisturbed
from tests.chaos.ray_runs import run_ray
from tests.chaos.torchrun_runs import make_shards

pytestmark = pytest.mark.cluster


def test_rank_then_driver_killed_and_resumed_on_one_rank_it_ends_as_one_rank_under_torchrun_did(
    ray_environment: dict[str, str], tmp_path: Path
) -> None:
    rank_dies = Strike("backward", 3, rank=1, fraction=0.6)
    driver_dies = Strike("driver", 5, rank=0, fraction=0.0)
    point = Point(0, "ray", "elastic", (Attempt(2, rank_dies), Attempt(2, driver_dies), Attempt(1, None)))
    shards = make_shards(tmp_path)
    with Nursery() as nursery:
        reference = undisturbed(shards, tmp_path / "undisturbed", 1, "elastic", nursery)
    orders, run_dir = prepared(point, tmp_path / "point"), tmp_path / "runs" / "killed"
    outcome = judged(
        point, orders, run_dir, reference, lambda: run_ray(point, shards, orders, run_dir, ray_environment)
    )
    assert outcome.wrong == [], (orders.folder / "log").read_text()
    assert [hit.place for hit in outcome.struck] == ["a gradient", "the driver, before step 5"]
