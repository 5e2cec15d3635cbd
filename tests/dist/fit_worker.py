"""One rank of a run of `fit()` that notes every sample it trains on.

argv: JSON with rank, size, shards, run_dir, settings, stop_step (or null), attempt, log.
"""

import json
import sys
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.train import step
from pipeline.train.loop import fit
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
        yield

    def mark(self, point, step):
        pass

    def stop_requested(self) -> bool:
        self.steps_begun += 1
        return self._stop_step is not None and self.steps_begun >= self._stop_step

    def metrics(self, step, values):
        self.recorded.append(["metrics", step, dict(values)])

    def event(self, name, step, **fields):
        self.recorded.append(["event", step, name, fields])

    def picture(self, key, step, image_HW3):
        self.recorded.append(["picture", step, key, image_HW3.shape])

    def table(self, key, step, columns, rows):
        self.recorded.append(["table", step, key, [list(row) for row in rows]])


def main() -> None:
    case = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    world = World(case["rank"], case["size"], case["rank"], case["size"])
    if world.size > 1:
        store = f"file://{case['run_dir']}/store-{case['attempt']}"
        dist.init_process_group("gloo", init_method=store, rank=world.rank, world_size=world.size)
    consumed: list[int] = []
    original_step = StepRunner.step
    original_to_device = step.to_device

    def noting_step(self, micro_batches, denominators, step_index):
        original_step(self, micro_batches, denominators, step_index)
        consumed.extend(pending)
        pending.clear()

    pending: list[int] = []

    def noting_to_device(batch, device):
        pending.extend(batch.positions)
        return original_to_device(batch, device)

    from pipeline.train import loop

    StepRunner.step = noting_step
    loop.to_device = noting_to_device
    context = NotingContext(world, case["attempt"], case["stop_step"])
    config = with_settings(recipe("laptop"), case["settings"] | {"launch.use_gpu": "no"})
    result = fit(config, case["shards"], Path(case["run_dir"]), context)
    out = {"result": asdict(result), "consumed": consumed, "recorded": context.recorded}
    Path(case["log"]).write_text(json.dumps(out))
    if world.size > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
