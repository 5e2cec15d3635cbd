"""One rank of runs of `fit()` with a step that is not finite on the last rank alone.

argv: folder, shards, JSON of the cases by name: settings, kind of poison ("" leaves the
step out on all ranks), steps. Each rank saves what it knows in the end.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipeline.errors import NonFiniteLossError
from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.train import loop
from pipeline.train.optim import optimizer_tensors
from pipeline.train.process_group import process_group
from pipeline.world import World
from tests.dist.fit_worker import NotingContext
from tests.poison import leave_out, plant


def run_case(case: dict, world: World, shards: str, run_dir: Path) -> dict:
    """Tensors, counts, events and the error of one run."""
    config = with_settings(recipe("laptop"), case["settings"])
    context = NotingContext(world, "a", None)
    runs, error, consumed = [], "", {}
    with pytest.MonkeyPatch.context() as patch:
        if case["kind"]:
            plant(patch, case["kind"], set(case["steps"]), rank=world.size - 1)
        else:
            leave_out(patch, set(case["steps"]))
        assemble, to_device = loop.assemble, loop.to_device

        def keep_run(*arguments):
            runs.append(assemble(*arguments))
            return runs[0]

        def listen(batch, device):
            consumed.setdefault(runs[0].state.step + 1, []).extend(
                zip(batch.positions, batch.keys, strict=True)
            )
            return to_device(batch, device)

        patch.setattr(loop, "assemble", keep_run)
        patch.setattr(loop, "to_device", listen)
        try:
            loop.fit(config, shards, run_dir, context)
        except NonFiniteLossError as problem:
            error = str(problem)
    (run,) = runs
    weights = dict(run.model.named_parameters()) | optimizer_tensors(run.model, run.optimizer)
    weights |= {f"averaged {k}": v for k, v in run.ema.averaged.named_parameters()}
    return {
        "weights": {k: v.detach().clone() for k, v in weights.items()},
        "buffers": {k: v.clone() for k, v in run.model.named_buffers()},
        "step": run.state.step,
        "skipped_steps": run.state.skipped_steps,
        "events": [[step, fields] for kind, step, *more in context.recorded
                   if kind == "event" and more[0] == "skipped" for fields in more[1:]],
        "error": error,
        "consumed": consumed,
    }  # fmt: skip


def main() -> None:
    rank, size, folder = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path(sys.argv[1])
    torch.set_num_threads(1)
    world = World(rank, size, rank, size)
    with process_group("gloo", world, store=folder / "store"):
        cases = json.loads(sys.argv[3])
        results = {name: run_case(case, world, sys.argv[2], folder / name) for name, case in cases.items()}
        torch.save(results, folder / f"rank{rank}.pt")
        dist.barrier()


if __name__ == "__main__":
    main()
