"""What the packing jobs have in common: who does the work, and what RESULT says of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, fields

from pipeline.data.packing.pack import PackReport
from pipeline.data.packing.parallel import MapTasks
from pipeline.data.packing.pictures import TreeError
from pipeline.launch.job import Result
from pipeline.launch.ray_map import task_map

FIELDS = tuple(field.name for field in fields(PackReport))
"""The packing jobs' keys of the RESULT line."""


def run_packing(result: Result, processes: int, out: str, pack: Callable[[MapTasks], PackReport]) -> None:
    """Packs to `out` and fills in the RESULT; where a tree is refused, with how many problems it has."""
    try:
        with task_map(processes) as map_tasks:
            report = pack(map_tasks)
    except TreeError as error:
        result["refused"] = len(error.problems)
        raise
    result |= asdict(report)
    sys.stdout.write(
        f"[done]  {report.samples} samples in {report.shards} shards, {report.bytes / 1e6:.1f} MB; "
        f"now type: python jobs/train_cityscapes.py --shards {out}\n"
    )
