"""One rank of attempts at `fit()`, one after the other, that notes every sample it trains on.

argv: JSON with store, and for each of `attempts` shards, run_dir, settings, stop_step (or null),
attempt, group_bytes and the folder of its logs.
"""

import json
import os
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.train import fixed_order, loop, step
from pipeline.train.loop import fit
from pipeline.train.process_group import process_group
from pipeline.train.step import StepRunner
from pipeline.world import World


class NotingContext:
    """A RunContext that asks to stop after a given step and keeps what was recorded."""

    tracking = ""

    def __init__(self, world: World, attempt: str, stop_step: int | None) -> None:
        self.world, self.attempt, self._stop_step = world, attempt, stop_step
        self.recorded: list = []
        self.steps_begun = 0

    @contextmanager
    def phase(self, name):
        self.steps_begun += name == "step"
        yield

    def mark(self, point, step):
        pass

    def stop_requested(self) -> bool:
        return self._stop_step is not None and self.steps_begun >= self._stop_step

    def metrics(self, step, values):
        self.recorded.append(["metrics", step, dict(values)])

    def event(self, name, step, **fields):
        self.recorded.append(["event", step, name, fields])

    def picture(self, key, step, image_HW3):
        self.recorded.append(["picture", step, key, image_HW3.shape])

    def table(self, key, step, columns, rows):
        self.recorded.append(["table", step, key, [list(row) for row in rows]])


class Consumed:
    """The positions of the steps that were done, noted by the loop's own calls."""

    def __init__(self) -> None:
        self.positions: list[int] = []
        self._pending: list[int] = []
        self._step, self._to_device = StepRunner.step, step.to_device

    def watch(self) -> None:
        def noting_step(runner, micro_batches, denominators, step_index):
            self._step(runner, micro_batches, denominators, step_index)
            self.positions += self._pending
            self._pending.clear()

        def noting_to_device(batch, device):
            self._pending += batch.positions
            return self._to_device(batch, device)

        StepRunner.step = noting_step
        loop.to_device = noting_to_device


def run(case: dict, world: World) -> None:
    consumed = Consumed()
    consumed.watch()
    stop_step = case["stop_step"] if world.rank == world.size - 1 else None
    context = NotingContext(world, case["attempt"], stop_step)
    config = with_settings(recipe("laptop"), case["settings"] | {"launch.use_gpu": "no"})
    fixed_order.GROUP_BYTES = case["group_bytes"]
    result = fit(config, case["shards"], Path(case["run_dir"]), context)
    out = {"result": asdict(result), "consumed": consumed.positions, "recorded": context.recorded}
    Path(case["logs"], f"{case['attempt']}-{world.rank}.json").write_text(json.dumps(out))
    StepRunner.step, loop.to_device = consumed._step, consumed._to_device


def main() -> None:
    told = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    world = World(rank, size, rank, size)
    with process_group("gloo", world, store=Path(told["store"])):
        for case in told["attempts"]:
            run(case, world)
        if world.size > 1:
            dist.barrier()


if __name__ == "__main__":
    main()
