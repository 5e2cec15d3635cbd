"""The train job: from what was typed to a RESULT, cheap checks first.

Whatever can be refused is refused before Ray is started, and whatever Ray's resources decide before
a worker is. `jobs/train_cityscapes.py` is its command.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.config import Config, require
from pipeline.errors import ConfigError
from pipeline.launch.extension import with_extension
from pipeline.launch.job import Result
from pipeline.launch.job_request import MODEL_NAME, read_job_request
from pipeline.launch.preflight import check_run
from pipeline.launch.ray_cluster import check_shared, joined_workers, refuse_other_nodes
from pipeline.launch.remote_run import RemoteRun, held_run
from pipeline.launch.run_folder import (
    finished_result,
    identity,
    lease,
    refuse_other_run,
    run_name,
    with_architecture,
    write_json,
)
from pipeline.launch.setting_flags import split_settings
from pipeline.launch.stop_signals import StopSignals
from pipeline.launch.world_size import WorldRange, read_workers

logger = logging.getLogger(__name__)

FIELDS = (
    "miou", "pixel_accuracy", "step", "samples_per_s", "data_wait_share", "run_id", "tracking_uri",
    "model_uri", "checkpoint", "shards", "report", "restarts", "quarantined",
    "goodput", "incidents",
)  # fmt: skip
"""The train job's own keys of its RESULT line."""

WORKER_SETUP = "pipeline.launch.warm_up.load_everything"
"""What every worker process of the job runs first: those in reserve have nothing left to import."""
NOT_YET = ("--init-from",)
"""Flags of the interface that this version does not have."""


@dataclass(frozen=True)
class TrainFlags:
    """Train a segmentation network on packed shards; evaluate, record and register it."""

    shards: str
    """Folder or address (s3://, gs://, http(s)://) of the packed data set; its manifest.json lies there."""
    recipe: str | None = None
    """Settings to begin from: laptop (the default), camvid, cityscapes-r50, cityscapes-r101."""
    config: str | None = None
    """config.json of a recorded run, to repeat it; instead of --recipe."""
    name: str | None = None
    """Name of the run; the same name again goes on with it. One is made up without it."""
    workers: str | None = None
    """Ranks; one a GPU, or up to two on CPUs, without it. MIN:MAX is elastic: each attempt takes as many of
    them as there is room for and as divide the batch; global batch and learning rate stay, as fewer ranks
    accumulate more micro-batches."""
    runs: str = "~/ccs-runs"
    """Folder of all runs: checkpoints, MLflow's database and artifacts, reports. Or s3://BUCKET/PATH, on one
    node: a working copy in --data.store.cache_dir is shipped there, and another machine goes on from it."""
    extend: bool = False
    """Go on with a finished run of --name to a larger --train.steps, all other settings as they were. The
    learning rate is then that of a run of the new length, so it jumps up where the run had ended: 20 steps
    extended to 40 take the second half of the schedule of 40. Records, MLflow run and report go on."""
    register: str | None = None
    """Name to register the best model under, instead of the recipe's."""
    preflight_only: bool = False
    """Check everything that can be checked, then end without training."""


@dataclass(frozen=True)
class Request:
    """What was typed, resolved."""

    config: Config
    shards: str
    runs_dir: Path
    name: str
    workers: WorldRange | None
    preflight_only: bool
    extend: bool = False
    name_typed: bool = False
    """Whether the name to register under was typed, and is not just the recipe's."""
    runs: str = ""
    """Address at which the runs are kept, where `runs_dir` has working copies of them."""

    @property
    def run_dir(self) -> Path:
        """The run's own folder."""
        return self.runs_dir / self.name


def read_request(argv: Sequence[str]) -> Request:
    """The request that was typed; raises ConfigError, one line."""
    for token in argv:
        if token.partition("=")[0] in NOT_YET:
            raise ConfigError(f"{token.partition('=')[0]} is not in this version yet; train without it")
    typed = read_job_request(TrainFlags, argv)
    flags = typed.flags
    require(
        not flags.extend or flags.name is not None, "--extend goes on with a finished run: type its --name"
    )
    return Request(
        typed.config,
        typed.shards,
        typed.runs_dir,
        run_name(flags.name, typed.config),
        read_workers(flags.workers),
        flags.preflight_only,
        flags.extend,
        name_typed=flags.register is not None or MODEL_NAME in split_settings(argv)[1],
        runs=typed.runs,
    )


def train(result: Result, argv: Sequence[str]) -> None:
    """Runs the train job, filling in its RESULT; raises a PipelineError for what cannot be."""
    request = read_request(argv)
    result["shards"] = request.shards
    if not request.runs:
        _train(result, request, None)
        return
    with held_run(request.runs, request.run_dir, request.config) as remote:
        _train(result, request, remote)


def _train(result: Result, request: Request, remote: RemoteRun | None) -> None:
    config = with_architecture(request.config, request.run_dir)
    config, before = with_extension(config, request.run_dir, extend=request.extend)
    request = replace(request, config=config)
    checked = check_run(request.config, request.shards, request.run_dir)
    recorded = {"manifest_id": checked.manifest_id}
    with lease(request.run_dir), StopSignals() as signals:
        refuse_other_run(request.run_dir, identity(before, recorded))
        finished = finished_result(request.run_dir, config.train.steps)
        if finished is not None:
            # MLflow takes seconds to import.
            from pipeline.launch.finished_run import settle  # noqa: PLC0415

            settle(request, finished, result)
            return
        with joined_workers(request.workers, config, WORKER_SETUP, signals) as workers:
            if remote:
                refuse_other_nodes(request.runs)
            check_shared(request.run_dir, request.shards)
            if request.preflight_only:
                logger.info(
                    "[preflight] %s, %.1fM parameters, %d workers on %s: ready to train",
                    checked.training, checked.parameters / 1e6, workers.num,
                    "GPUs" if workers.use_gpu else "CPUs",
                )  # fmt: skip
                return
            write_json(request.run_dir / "config.json", identity(config, recorded))
            # Ray and MLflow take seconds to import, and read an environment that is set by now.
            from pipeline.launch.train_run import train_run  # noqa: PLC0415

            train_run(request, workers, signals, result, remote)


def git_commit() -> str:
    """The commit of this code: from the environment in a job, whose copy has no .git; else from git."""
    if "CCS_GIT_COMMIT" in os.environ:
        return os.environ["CCS_GIT_COMMIT"]
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()
