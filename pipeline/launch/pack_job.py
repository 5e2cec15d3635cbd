"""What the packing jobs have in common: who does the work, and what RESULT says of it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, fields

from pipeline.config import DataConfig
from pipeline.data.manifest import load_manifest
from pipeline.data.packing.pack import PackReport
from pipeline.data.packing.parallel import MapTasks
from pipeline.data.packing.pictures import TreeError
from pipeline.data.packing.shard_plan import amount
from pipeline.launch.job import Result, tell
from pipeline.launch.ray_map import task_map

FIELDS = tuple(field.name for field in fields(PackReport))
"""The packing jobs' keys of the RESULT line."""
_TOLD = 10
"""Problems of a tree that are listed, at most."""


def run_packing(result: Result, processes: int, out: str, pack: Callable[[MapTasks], PackReport]) -> None:
    """Packs to `out` and fills in the RESULT; where a tree is refused, with how many pictures are."""
    try:
        with task_map(processes) as map_tasks:
            report = pack(map_tasks)
    except TreeError as error:
        result["refused"] = len(error.problems)
        for problem in error.problems[1:_TOLD]:  # the first one ends the job
            tell(problem)
        raise
    result |= asdict(report)
    sys.stdout.write(
        f"[done]  {report.samples} samples in {report.shards} shards, {amount(report.bytes)}; "
        f"{_next_step(out)}\n"
    )


def _next_step(out: str) -> str:
    """What to type to train on the shards, or which split that takes and they lack."""
    splits = load_manifest(out).splits
    lacking = [split for split in (DataConfig.train_split, DataConfig.val_split) if split not in splits]
    if lacking:
        return f"training takes a split {' and a split '.join(lacking)} too, unless it is told others"
    return f"now type: python jobs/train_cityscapes.py --shards {shlex.quote(out)}"
