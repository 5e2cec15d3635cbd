"""The same `fit()` under torchrun, for machines without Ray, MLflow or tyro.

    torchrun --nproc-per-node 2 -m pipeline.launch.torchrun --shards DIR_OR_URL --runs DIR_OR_URL
        [--recipe NAME] [--name RUN] [--section.field VALUE …]

Rank 0 alone checks what was typed, holds the run's folder and prints RESULT. SIGINT and SIGTERM, which
torchrun passes on, checkpoint at the end of the step.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import torch

from pipeline.config import Config
from pipeline.data.quarantine import num_quarantined
from pipeline.errors import ConfigError, PipelineError, Preempted, one_line
from pipeline.idle_settings import refuse_idle_settings
from pipeline.launch.extension import with_extension
from pipeline.launch.fence import begin_attempt
from pipeline.launch.job import Result, run_job, tell
from pipeline.launch.paths import resolve_path, resolve_runs, resolve_settings
from pipeline.launch.preflight import check_addresses, check_run
from pipeline.launch.remote_run import RemoteRun, held_run, shown
from pipeline.launch.run_context import JournaledContext
from pipeline.launch.run_folder import (
    identity,
    lease,
    refuse_other_run,
    run_name,
    with_architecture,
    write_json,
)
from pipeline.launch.setting_flags import split_settings
from pipeline.launch.stop_signals import StopSignals
from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.tracking.incidents import read_account
from pipeline.train.checkpoint import best_checkpoint
from pipeline.train.loop import fit
from pipeline.train.process_group import process_group
from pipeline.train.reduce import broadcast_object
from pipeline.train.run import pick_device
from pipeline.world import World

FIELDS = (
    "miou", "pixel_accuracy", "step", "samples_per_s", "data_wait_share", "checkpoint", "shards",
    "quarantined", "goodput", "incidents",
)  # fmt: skip
TO_EXTEND = "this command extends none, so type python jobs/train_cityscapes.py with --extend"
"""What a finished run that is asked for more steps needs."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; --help lists all flags")


class _RefusedByRankZero(Exception):  # noqa: N818 - rank 0 has the error and says it
    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


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
    # What was typed is read alike by all, so what is wrong with it is said by rank 0 alone.
    logging.getLogger("pipeline").setLevel(logging.WARNING)
    try:
        _read(argv)
    except PipelineError as error:
        return error.exit_code
    try:
        run({})
    except Preempted:
        return 0
    except _RefusedByRankZero as refusal:
        return refusal.exit_code
    except PipelineError as error:
        tell(f"train: rank {world.rank}: {one_line(error)}")
        return error.exit_code
    return 0


def train(result: Result, argv: Sequence[str], world: World) -> None:
    """One rank: `fit()` on the process group that torchrun's environment describes."""
    config, shards, runs, run_dir = _read(argv)
    if runs:
        _refuse_other_nodes(runs, world)
    result["shards"] = shards
    torch.set_num_threads(config.launch.threads_per_worker)
    device = pick_device(config.launch.use_gpu, world)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL sends objects by way of the current device
    with ExitStack() as stack:
        timeout = timedelta(seconds=config.launch.collective_timeout_s)
        backend = "nccl" if device.type == "cuda" else "gloo"
        stack.enter_context(process_group(backend, world, timeout))
        config, attempt, remote = _hold_run(config, shards, runs, run_dir, world, stack)
        signals = stack.enter_context(StopSignals())
        saved = stack.enter_context(remote.shipping()) if remote else lambda: None
        context = JournaledContext(run_dir, world, attempt, stop_wanted=signals.stop_wanted, saved=saved)
        stack.callback(context.close)
        try:
            ended = dataclasses.asdict(fit(config, shards, run_dir, context))
        finally:
            result["quarantined"] = num_quarantined(run_dir)
        result |= {key: value for key, value in ended.items() if key in FIELDS}
        best = best_checkpoint(run_dir)
        result["checkpoint"] = shown(remote, best) if best else None
        if world.is_main:
            result |= read_account(run_dir).values()
        if ended["status"] == "preempted":
            raise Preempted(f"stopped at step {ended['step']} after a checkpoint; type the same to go on")


def _hold_run(
    config: Config, shards: str, runs: str, run_dir: Path, world: World, stack: ExitStack
) -> tuple[Config, str, RemoteRun | None]:
    """The config as it is recorded and the attempt's name, from rank 0. A collective.

    Rank 0 checks the run and holds its folder, and the run at an address, which it alone is given.

    Raises rank 0's error there, and _RefusedByRankZero elsewhere: a rank that heard nothing would wait
    for rank 0 until it is killed.
    """
    refusal: PipelineError | None = None
    attempt = ""
    remote: RemoteRun | None = None
    if world.is_main:
        try:
            if runs:
                remote = stack.enter_context(held_run(runs, run_dir, config))
            config = with_architecture(config, run_dir)
            config, _ = with_extension(config, run_dir, extend=False, to_extend=TO_EXTEND)
            checked = check_run(config, shards, run_dir)
            wanted = identity(config, {"manifest_id": checked.manifest_id})
            stack.enter_context(lease(run_dir))
            refuse_other_run(run_dir, wanted)
            write_json(run_dir / "config.json", wanted)
            attempt = remote.begin_attempt() if remote else begin_attempt(run_dir)
        except PipelineError as error:
            refusal = error
    said = (refusal.exit_code if refusal else 0, config, attempt)
    exit_code, config, attempt = broadcast_object(said, world)
    if refusal:
        raise refusal
    if exit_code:
        raise _RefusedByRankZero(exit_code)
    return config, attempt, remote


def _refuse_other_nodes(runs: str, world: World) -> None:
    """Raises ConfigError where ranks are on several machines."""
    if world.local_size != world.size:
        raise ConfigError(
            f"--runs {runs} is for one machine, and there are {world.size} ranks, {world.local_size} of them "
            "here: they would stop each other by files of the run's folder; type a folder that all mount"
        )


def _read(argv: Sequence[str]) -> tuple[Config, str, str, Path]:
    """Config, shards, address of runs ("" for a folder) and the run's folder, as they were typed.

    Raises ConfigError, one line.
    """
    rest, settings = split_settings(argv)
    parser = _Parser(prog="pipeline.launch.torchrun", description=__doc__, allow_abbrev=False)
    parser.add_argument("--shards", required=True, help="folder or address of the packed data set")
    parser.add_argument(
        "--runs", required=True, help="folder of all runs, seen by all nodes, or s3://BUCKET/PATH"
    )
    parser.add_argument("--name", default="torchrun", help="name of the run; the same again goes on with it")
    parser.add_argument("--recipe", default="laptop", help="settings to begin from")
    flags = parser.parse_args(rest)
    _refuse_settings_of_ray(settings)
    config = resolve_settings(with_settings(recipe(flags.recipe), settings))
    refuse_idle_settings(config, settings)
    shards = resolve_path("--shards", flags.shards)
    check_addresses(shards, flags.runs, config.data.unindexed_train)
    runs, folder = resolve_runs(flags.runs, config)
    return config, shards, runs, folder / run_name(flags.name, config)


def _refuse_settings_of_ray(typed: Iterable[str]) -> None:
    """Raises ConfigError for a typed setting that only the train job obeys."""
    for name in typed:
        if name in ("launch.max_failures", "launch.workers_wait_s", "launch.spares"):
            raise ConfigError(f"--{name} does nothing here: torchrun restarts by its own --max-restarts")
        if name.startswith("launch.deadline."):
            raise ConfigError(
                f"--{name} does nothing here: a rank that hangs is ended by --launch.collective_timeout_s"
            )
        if name.startswith("tracking."):
            raise ConfigError(f"--{name} does nothing here: this command keeps a journal and no MLflow")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
