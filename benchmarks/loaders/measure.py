"""One measurement in a fresh process: `python -m loaders.measure ACTION TASK`; prints one line of JSON.

CPU time is user and system time of this process, its children and their children, the ended ones too.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib import import_module
from typing import Any, cast

import numpy as np
import psutil

from loaders.task import Batch, Loader, Task

_READINGS = 50


def main() -> int:
    """Runs the action; the result is the last line of standard output."""
    action, task = sys.argv[1], Task(**json.loads(sys.argv[2]))
    loader = cast("Loader", import_module(f"loaders.{task.loader}"))
    result: dict[str, Any] = {}
    if action == "write":
        loader.write(task)
    elif action == "limit":
        result = limit(loader, task)
    elif action == "resident":
        result = resident(loader, task)
    else:
        result = whole_loader(loader, task)
    print(json.dumps(result), flush=True)
    return 0


def whole_loader(loader: Loader, task: Task) -> dict[str, float]:
    """CPU and wall time a sample of whole batches in this process, and what starting took."""
    started_s = time.perf_counter()
    batches = loader.batches(task)
    refuse_other_batches(next(batches), task)
    start_s = time.perf_counter() - started_s
    for _ in range(task.warm_up // task.batch):
        next(batches)
    count = -(-task.samples // task.batch)
    cpu_s, wall_s = tree_cpu_s(), time.perf_counter()
    for _ in range(count):
        next(batches)
    cpu_s, wall_s = tree_cpu_s() - cpu_s, time.perf_counter() - wall_s
    batches.close()
    samples = count * task.batch
    return {"cpu_ms": 1e3 * cpu_s / samples, "wall_ms": 1e3 * wall_s / samples, "start_s": start_s}


def limit(loader: Loader, task: Task) -> dict[str, float]:
    """CPU time a sample of decoding and cropping alone, in this one process."""
    work = loader.from_memory(task)
    for _ in range(task.warm_up):
        next(work)
    cpu_s = time.process_time()
    for _ in range(task.samples):
        next(work)
    return {"cpu_ms": 1e3 * (time.process_time() - cpu_s) / task.samples}


def resident(loader: Loader, task: Task) -> dict[str, Any]:
    """Memory of all processes, in MB, after each fiftieth of the batches."""
    batches, count = loader.batches(task), task.samples // task.batch
    memory_mb = []
    for done in range(1, count + 1):
        next(batches)
        if done % max(1, count // _READINGS) == 0:
            memory_mb.append(tree_memory_mb())
    batches.close()
    return {"batches": count, "memory_mb": memory_mb}


def refuse_other_batches(batch: Batch, task: Task) -> None:
    """Ends the measurement where the batch is not what all loaders have to deliver."""
    image, label = batch
    crop = (task.batch, task.crop_height, task.crop_width)
    assert image.shape in {(*crop, 3), (task.batch, 3, *crop[1:])}, image.shape
    assert label.shape == crop, label.shape
    assert image.flags.c_contiguous
    assert label.flags.c_contiguous
    labelled = label[label != 255]
    assert labelled.size
    assert int(labelled.max()) < 19, "labels are train ids"
    assert float(np.std(image)) > 0, "images are pictures"


def tree_cpu_s() -> float:
    """CPU seconds so far of this process and all that it started."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def tree_memory_mb() -> float:
    """Memory of this process and all that it started; pages that they share count once."""
    me = psutil.Process()
    return sum(float(one.memory_full_info().pss) for one in [me, *me.children(recursive=True)]) / 1e6


if __name__ == "__main__":
    sys.exit(main())
