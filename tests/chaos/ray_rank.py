"""One rank of an attempt under Ray Train: the shipped worker, with seams and notes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.launch import ray_attempt
from tests.chaos.rank import Orders, prepare

shipped = ray_attempt._worker


def orders_file(run_dir: Path) -> Path:
    """Where a rank finds its orders, beside the folder of its run."""
    return run_dir.with_name(f"{run_dir.name}.orders.json")


def worker(settings: dict[str, Any]) -> dict[str, Any]:
    """What Ray Train runs in place of the shipped worker."""
    orders = orders_file(Path(settings["launch"]["run_dir"]))
    prepare(Orders.from_dict(json.loads(orders.read_text())))
    return shipped(settings)
