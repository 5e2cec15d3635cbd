"""The same `fit()` under torchrun, for machines without Ray, MLflow or tyro.

    torchrun --nproc-per-node 2 -m pipeline.launch.torchrun --shards DIR --runs DIR [--recipe NAME]
        [--name RUN] [--section.field VALUE …]

Rank 0 alone checks what was typed, holds the run's folder and prints RESULT. SIGINT and SIGTERM, which
torchrun passes on, checkpoint at the end of the step.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import secrets
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist

from pipeline.config import Config
from pipeline.errors import ConfigError, Preempted
from pipeline.launch.job import Result, run_job
from pipeline.launch.paths import resolve_path
from pipeline.launch.preflight import check_local_paths, check_run
from pipeline.launch.run_context import JournaledContext
from pipeline.launch.run_folder import identity, lease, refuse_other_run, run_name, write_json
from pipeline.launch.setting_flags import split_settings
from pipeline.launch.stop_signals import StopSignals
from pipeline.recipes import recipe
from pipeline.settings import refuse_idle_settings, with_settings
from pipeline.train.checkpoint import best_checkpoint
from pipeline.train.loop import fit
from pipeline.train.reduce import broadcast_object
from pipeline.train.run import pick_device
from pipeline.world import World

FIELDS = ("miou", "pixel_accuracy", "step", "samples_per_s", "data_wait_share", "checkpoint", "shards")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists all flags")


def main(argv: Sequence[str]) -> int:
    """The exit code of this rank."""
    world = World(
        rank=int(os.environ.get("RANK", "0")),
        size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )

    def run(result: Result) -> None:
        train(result, argv, world)

    if world.is_main:
        return run_job("train", run, FIELDS)
    # What is wrong is said once, by rank 0, which finds the same.
    logging.getLogger("pipeline").setLevel(logging.WARNING)
    result: Result = {}
    with suppress(Preempted):
        run(result)
    return 0


def train(result: Result, argv: Sequence[str], world: World) -> None:
    """One rank: `fit()` on the process group that torchrun's environment describes."""
    config, shards, run_dir = _read(argv)
    result["shards"] = shards
    torch.set_num_threads(config.launch.threads_per_worker)
    device = pick_device(config.launch.use_gpu, world)
    with ExitStack() as stack:
        if world.is_main:
            checked = check_run(config, shards, run_dir)
            wanted = identity(config, {"manifest_id": checked.manifest_id})
            stack.enter_context(lease(run_dir))
            refuse_other_run(run_dir, wanted)
            write_json(run_dir / "config.json", wanted)
        signals = stack.enter_context(StopSignals())
        if world.size > 1:
            timeout = timedelta(seconds=config.launch.collective_timeout_s)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timeout)
            stack.callback(dist.destroy_process_group)
        attempt = broadcast_object(secrets.token_hex(4), world)
        context = JournaledContext(run_dir, world, attempt, stop_wanted=signals.stop_wanted)
        stack.callback(context.close)
        ended = dataclasses.asdict(fit(config, shards, run_dir, context))
        result |= {key: value for key, value in ended.items() if key in FIELDS}
        best = best_checkpoint(run_dir)
        result["checkpoint"] = str(best) if best else None
    if ended["status"] == "preempted":
        raise Preempted(f"stopped at step {ended['step']} after a checkpoint; type the same to go on")


def _read(argv: Sequence[str]) -> tuple[Config, str, Path]:
    """Config, shards and the run's folder as they were typed; raises ConfigError, one line."""
    rest, settings = split_settings(argv)
    parser = _Parser(prog="pipeline.launch.torchrun", description=__doc__, allow_abbrev=False)
    parser.add_argument("--shards", required=True, help="folder of the packed data set")
    parser.add_argument("--runs", required=True, help="folder of all runs, seen by all nodes")
    parser.add_argument("--name", default="torchrun", help="name of the run; the same again goes on with it")
    parser.add_argument("--recipe", default="laptop", help="settings to begin from")
    flags = parser.parse_args(rest)
    config = with_settings(recipe(flags.recipe), settings)
    refuse_idle_settings(config, settings)
    shards, runs = resolve_path("--shards", flags.shards), resolve_path("--runs", flags.runs)
    check_local_paths(shards, runs)
    return config, shards, Path(runs) / run_name(flags.name, config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
