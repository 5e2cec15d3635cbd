"""One rank of a group that takes steps with each variant in turn; the first writes what was found.

argv: JSON with rank, folder and task.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from steps.batches import make_batches

from pipeline.data.labels import CITYSCAPES
from pipeline.heap import keep_freed_memory
from pipeline.model.segmenter import build_segmenter, channels_last
from pipeline.train.determinism import build_reduction, settle_kernels
from pipeline.train.optim import build_optimizer
from pipeline.train.process_group import process_group
from pipeline.train.shard_batch_norm import take_shard_statistics
from pipeline.train.step import StepRunner, to_device
from pipeline.world import World
from ranks.task import RanksTask, Variant

CPU = torch.device("cpu")
_BATCHES = 4
"""Different global batches, taken in turn."""


class Learner:
    """A network that learns as `fit` has it learn, with one variant's settings."""

    def __init__(self, task: RanksTask, variant: Variant, world: World) -> None:
        self.config = config = task.config(variant)
        torch.manual_seed(0)
        self.model = build_segmenter(config.model, CITYSCAPES.num_classes)
        if config.train.determinism == "elastic":
            take_shard_statistics(self.model)
        channels_last(self.model)
        self._runner = StepRunner(
            self.model, build_optimizer(config.optim, self.model),
            build_reduction(self.model, config.train, world, CPU),
            class_names=CITYSCAPES.names, config=config, world=world, device=CPU,
        )  # fmt: skip
        num_micro = config.train.micro_batches_per_rank(world.size)
        size = config.train.micro_batch_per_rank(world.size), config.data.crop_height, config.data.crop_width
        made = make_batches(_BATCHES * num_micro * world.size, *size, CITYSCAPES.num_classes)
        mine = made[world.rank :: world.size]
        self._steps = cycle([mine[i : i + num_micro] for i in range(0, len(mine), num_micro)])
        self._step = 0

    def block(self, steps: int) -> tuple[float, float]:
        """Milliseconds of wall and of CPU time a step, over a block that ends with a point of the curves."""
        settle_kernels(self.config.train, self.config.launch.threads_per_worker)
        dist.barrier()
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        for _ in range(steps):
            micro_batches = [to_device(batch, CPU) for batch in next(self._steps)]
            agreement = self._runner.agree(micro_batches, False)
            self._runner.step(micro_batches, agreement.denominators, self._step)
            self._step += 1
        self._runner.summary(0.0)
        wall_ms, cpu_ms = 1e3 * (time.perf_counter() - wall_s), 1e3 * (time.process_time() - cpu_s)
        return wall_ms / steps, cpu_ms / steps


def main() -> None:
    """Measure as one rank of a group."""
    told = json.loads(sys.argv[1])
    task, folder = RanksTask.from_json(told["task"]), Path(told["folder"])
    torch.set_num_threads(task.threads)
    keep_freed_memory()
    world = World(told["rank"], task.size, told["rank"], task.size)
    with process_group("gloo", world, store=folder / "store"):
        measure(task, world, folder)
        dist.barrier()


def measure(task: RanksTask, world: World, folder: Path) -> None:
    """Take the steps of all variants in turn; the first rank writes what was found."""
    learners = [Learner(task, variant, world) for variant in task.variants]
    wall_BV, cpu_BV = np.zeros((2, task.warm_up + task.blocks, len(learners)))
    for number in range(len(wall_BV)):
        for turn in range(len(learners)):
            variant = (number + turn) % len(learners)
            wall_BV[number, variant], cpu_BV[number, variant] = learners[variant].block(task.block)
        if world.is_main and len(learners) > 1:
            print(f"round {number + 1} of {len(wall_BV)}", file=sys.stderr, flush=True)
    peak_mb = torch.tensor(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    dist.all_reduce(peak_mb, dist.ReduceOp.MAX)
    cpu = torch.from_numpy(cpu_BV)
    dist.all_reduce(cpu)
    if world.is_main:
        trained = [p for p in learners[0].model.parameters() if p.requires_grad]
        found = {
            "wall_ms": wall_BV[task.warm_up :].tolist(),
            "cpu_ms": cpu[task.warm_up :].tolist(),
            "peak_mb": float(peak_mb),
            "gradient_mb": sum(p.nbytes for p in trained) / 2**20,
        }
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
