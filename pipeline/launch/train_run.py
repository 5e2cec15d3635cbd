"""A training run from its MLflow run to its report: what the driver does around the workers."""

from __future__ import annotations

import logging

from pipeline.data.dataset import ShardDataset
from pipeline.errors import Preempted
from pipeline.launch.job import Result
from pipeline.launch.publish import publish_best
from pipeline.launch.ray_train import Launch, train_on_ray
from pipeline.launch.run_folder import write_json
from pipeline.launch.stop_signals import StopSignals
from pipeline.launch.train_job import Request, git_commit
from pipeline.launch.workers import Workers
from pipeline.settings import config_hash, flatten, to_dict
from pipeline.tracking.dataset_source import DatasetInfo
from pipeline.tracking.mlflow_store import RunDescription, Status
from pipeline.tracking.mlflow_sync import MlflowRun
from pipeline.tracking.report import write_report
from pipeline.train.checkpoint import best_checkpoint, newest_checkpoint

_log = logging.getLogger(__name__)


def train_run(request: Request, workers: Workers, signals: StopSignals, result: Result) -> None:
    """Trains, publishes and reports, filling in the RESULT; raises Preempted after a stop.

    MLflow is shipped to beside training and never needed by it. A run that was stopped or failed
    keeps its MLflow run, which the next attempt of the same name goes on with.
    """
    run = MlflowRun.open(_description(request, workers))
    status: Status = "FAILED"
    try:
        result |= {"run_id": run.run_id, "tracking_uri": run.tracking_uri}
        launch = Launch(request.config, request.shards, request.run_dir, workers, run.page)
        trained = train_on_ray(launch, signals)
        ended = {key: trained.fit[key] for key in FIT_FIELDS}
        result |= ended | {"restarts": trained.restarts, "quarantined": None}
        checkpoint = best_checkpoint(request.run_dir) or newest_checkpoint(request.run_dir)
        result["checkpoint"] = str(checkpoint) if checkpoint else None
        if trained.fit["status"] == "preempted":
            status = "KILLED"
            raise Preempted(
                f"stopped at step {ended['step']} of {request.config.train.steps} after a checkpoint; "
                f"type the same with --name {request.name} to go on"
            )
        _publish(request, run, result)
        status = "FINISHED"
    finally:
        pending = run.finish(status)
        if pending:
            _log.info("[event] %s", pending)
        result["run_id"] = run.run_id
    write_json(request.run_dir / "result.json", result)
    _log.info(
        "[done]  best mIoU %.3f @%s  model=%s  report=%s",
        result["miou"], trained.fit["best_step"], result["model_uri"], result["report"],
    )  # fmt: skip


FIT_FIELDS = ("miou", "pixel_accuracy", "step", "samples_per_s", "data_wait_share")
"""What RESULT takes over from the FitResult."""


def _publish(request: Request, run: MlflowRun, result: Result) -> None:
    """Export and register the best model, and write the report."""
    published = publish_best(request.run_dir, run, request.config, git_commit())
    _log.info("[done]  %s", published.line)
    result["model_uri"] = published.model_uri
    shown = ("miou", "pixel_accuracy", "step", "samples_per_s", "restarts", "model_uri", "shards")
    facts = {"run": request.name} | {key: result[key] for key in shown}
    report = write_report(request.run_dir, f"Run {request.name}", facts, to_dict(request.config))
    result["report"] = str(report)
    run.add_artifact(report)


def _description(request: Request, workers: Workers) -> RunDescription:
    config = request.config
    train = ShardDataset.open(request.shards, config.data.train_split)
    val = ShardDataset.open(request.shards, config.data.val_split)
    datasets = tuple(
        DatasetInfo(
            name=request.shards.rstrip("/").rpartition("/")[2],
            root=request.shards,
            split=dataset.split.name,
            context="training" if dataset is train else "evaluation",
            manifest_id=dataset.manifest.id,
            samples=len(dataset),
            shards=len(dataset.split.shards),
            num_bytes=dataset.split.bytes,
            classes=dataset.classes.names,
        )
        for dataset in (train, val)
    )
    return RunDescription(
        runs_dir=request.runs_dir,
        run_dir=request.run_dir,
        run_name=request.name,
        experiment=config.tracking.experiment,
        params=flatten(config),
        config=to_dict(config),
        datasets=datasets,
        tags={
            "git.commit": git_commit(),
            "config_hash": config_hash(config),
            "world_size": str(workers.num),
            "device": "gpu" if workers.use_gpu else "cpu",
        },
    )
