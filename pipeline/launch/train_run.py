"""A training run from its MLflow run to its report: what the driver does around the workers."""

from __future__ import annotations

import logging
from pathlib import Path

from pipeline.data.quarantine import num_quarantined
from pipeline.errors import Preempted
from pipeline.launch.job import Result
from pipeline.launch.ray_attempt import Launch
from pipeline.launch.ray_train import train_on_ray
from pipeline.launch.remote_run import RemoteRun, shown
from pipeline.launch.run_folder import GIT_COMMIT, write_json
from pipeline.launch.run_record import describe, publish, report
from pipeline.launch.stop_signals import StopSignals
from pipeline.launch.train_job import Request, git_commit
from pipeline.launch.workers import Workers
from pipeline.launch.world_size import WorldRange
from pipeline.settings import config_hash
from pipeline.tracking.incidents import read_account
from pipeline.tracking.mlflow_store import Status
from pipeline.tracking.mlflow_sync import MlflowRun
from pipeline.train.checkpoint import best_checkpoint, newest_checkpoint

logger = logging.getLogger(__name__)


def train_run(
    request: Request, workers: Workers, signals: StopSignals, result: Result, remote: RemoteRun | None
) -> None:
    """Trains, publishes and reports, filling in the RESULT; raises Preempted after a stop.

    MLflow is shipped to beside training and never needed by it. A run that was stopped or failed
    keeps its MLflow run, which the next attempt of the same name goes on with.
    """
    commit = git_commit()
    tags = {
        "git.commit": commit,
        "config_hash": config_hash(request.config),
        "world_size": str(workers.num),  # the first attempt's; each start in the journal has its own
        "device": "gpu" if workers.use_gpu else "cpu",
    }
    if request.config.train.extended_at:
        tags["extended_at"] = request.config.train.extended_at  # MLflow keeps the param of back then
    run = MlflowRun.open(describe(request, tags))
    status: Status = "FAILED"
    try:
        result |= {"run_id": run.run_id, "tracking_uri": run.tracking_uri}
        world = request.workers or WorldRange(workers.num, workers.num)
        launch = Launch(request.config, request.shards, request.run_dir, workers, world, run.page, remote)
        trained = train_on_ray(launch, signals)
        ended = {key: trained.fit[key] for key in FIT_FIELDS}
        account = read_account(request.run_dir)
        result |= ended | {"restarts": trained.restarts} | account.values()
        if line := account.line():
            logger.info("[event] %s", line)
        checkpoint = best_checkpoint(request.run_dir) or newest_checkpoint(request.run_dir)
        result["checkpoint"] = shown(remote, checkpoint) if checkpoint else None
        if trained.fit["status"] == "preempted":
            raise Preempted(
                f"stopped at step {ended['step']} of {request.config.train.steps} after a checkpoint; "
                f"type the same with --name {request.name} to go on"
            )
        result["model_uri"] = publish(request, run, commit).model_uri
        report(request, run, result)
        if result["report"]:
            result["report"] = shown(remote, Path(result["report"]))
        status = "FINISHED"
    except Preempted:
        status = "KILLED"
        raise
    finally:
        pending = run.finish(status, request.config.tracking.wait_s)
        if pending:
            logger.info("[event] %s", pending)
        result |= {"run_id": run.run_id, "quarantined": num_quarantined(request.run_dir)}
    write_json(request.run_dir / "result.json", result | {GIT_COMMIT: commit})
    logger.info(
        "[done]  best mIoU %.3f @%s  model=%s  report=%s",
        result["miou"], trained.fit["best_step"], result["model_uri"], result["report"],
    )  # fmt: skip


FIT_FIELDS = ("miou", "pixel_accuracy", "step", "samples_per_s", "data_wait_share")
"""What RESULT takes over from the FitResult."""
