"""What MLflow is told of a run, and how its best model is handed over: at its end, or by a later repeat."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pipeline.config.model_names import backbone_name
from pipeline.data.dataset import open_splits
from pipeline.launch.job import Result
from pipeline.launch.publish import Published, publish_best
from pipeline.launch.train_job import Request
from pipeline.settings import flatten, to_dict
from pipeline.tracking.dataset_source import DatasetInfo
from pipeline.tracking.mlflow_store import BACKBONE, RunDescription
from pipeline.tracking.mlflow_sync import MlflowRun
from pipeline.tracking.report import write_report

logger = logging.getLogger(__name__)


def publish(request: Request, run: MlflowRun, git_commit: str) -> Published:
    """Export and register the best model of the run, and say how that went."""
    published = publish_best(request.run_dir, run, request.config, git_commit)
    logger.info("[done]  %s", published.line)
    return published


def report(request: Request, run: MlflowRun, result: Result) -> None:
    """Write the report of the run with what the RESULT has, among the artifacts too."""
    shown = ("miou", "pixel_accuracy", "step", "samples_per_s", "restarts", "goodput", "model_uri", "shards")
    facts = {"run": request.name} | {key: result[key] for key in shown}
    path = write_report(request.run_dir, f"Run {request.name}", facts, to_dict(request.config))
    result["report"] = str(path) if path else None
    if path:
        run.add_artifact(path)


def describe(request: Request, tags: Mapping[str, str]) -> RunDescription:
    """The run as MLflow shows it."""
    config = request.config
    train, val = open_splits(request.shards, config.data)
    datasets = tuple(
        DatasetInfo(
            name=request.shards.rstrip("/").rpartition("/")[2],
            root=request.shards,
            split=dataset.split.name,
            context="training" if dataset is train else "evaluation",
            manifest_id=dataset.manifest.id,
            samples=len(dataset),
            shards=len(dataset.split.shards),
            part=str(dataset.part or ""),
            num_bytes=dataset.split.bytes,
            classes=dataset.classes.names,
        )
        for dataset in ((val,) if config.data.unindexed_train else (train, val))
    )
    return RunDescription(
        runs_dir=request.runs_dir,
        run_dir=request.run_dir,
        run_name=request.name,
        experiment=config.tracking.experiment,
        params=flatten(config) | {BACKBONE: backbone_name(config.model.backbone)},
        config=to_dict(config),
        datasets=datasets,
        tags=tags,
    )
