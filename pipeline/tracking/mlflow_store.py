"""The calls that tracking makes to MLflow, each idempotent, none of them patient.

Every method may raise whatever MLflow, its HTTP client or its database raise, and may take as long
as the limits below allow; `mlflow_sync` calls them from a thread of its own and deals with that.
Calling one again after a failure never makes a second run, point, picture or table.
"""

from __future__ import annotations

import json
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2

with warnings.catch_warnings():
    # mlflow's own imports use what newer pydantic and SQLAlchemy call deprecated; not ours to mend.
    warnings.simplefilter("ignore")
    import mlflow
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag, ViewType
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pipeline.errors import PipelineError
from pipeline.tracking.dataset_source import DatasetInfo, dataset_input
from pipeline.tracking.server import be_impatient, tracking_uri

Status = Literal["FINISHED", "FAILED", "KILLED"]

RUN_NAME_TAG = "ccs.run_name"
RUN_DIR_TAG = "ccs.run_dir"
SHOWN_COLUMNS = ("val/miou", "val/pixel_accuracy", "train/loss", "train/samples_per_s")
BACKBONE = "model.backbone"
"""Param with the backbone's name: a column of the table of runs, where its many settings are none."""
SHOWN_PARAMS = ("model.head.kind", BACKBONE, "optim.lr", "train.steps")
MAX_METRICS_A_BATCH = 1000
MAX_PARAMS_A_BATCH = 100
MAX_PARAM_CHARS = 6000
MAX_NOTE_CHARS = 7500
_IMAGE_NAME = re.compile(r"^(?P<key>.+)\+step\+(?P<step>\d+)\+timestamp\+.*\+compressed\.webp$")


class BrokenPictureError(PipelineError):
    """The file of a recorded picture went bad on the disk."""


@dataclass(frozen=True)
class RunDescription:
    """What the driver knows of a run before its first step."""

    runs_dir: Path
    run_dir: Path
    run_name: str
    experiment: str
    params: Mapping[str, Any]
    """The resolved config, dotted name → value, and the names that stand for several of them."""
    config: Mapping[str, Any]
    """The same, nested: what `--config` repeats."""
    datasets: Sequence[DatasetInfo] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    """Git commit, world size, device, …"""
    note: str = ""
    """Plain text; the run page shows its first four lines."""
    parent: Path | None = None
    """Folder of the run that this one is shown below."""


@dataclass
class Sent:
    """What MLflow already holds of a run, as read back from it."""

    points: set[tuple[str, int]] = field(default_factory=set)
    pictures: set[tuple[str, int]] = field(default_factory=set)


class MlflowStore:
    """One tracking server or database."""

    def __init__(self, runs_dir: Path) -> None:
        be_impatient()
        self.uri = tracking_uri(runs_dir)
        self._runs_dir = runs_dir.resolve()
        self.client = MlflowClient(self.uri)

    def open_run(self, description: RunDescription) -> tuple[str, str]:
        """(run id, experiment id): the run of that folder, made where it does not exist yet.

        Raises LookupError for a run below one that is not there yet.
        """
        if self.uri.startswith("sqlite"):
            self._runs_dir.mkdir(parents=True, exist_ok=True)
        experiment_id = self._experiment(description.experiment)
        run_id = self._run_of(experiment_id, description.run_dir)
        if run_id is not None:
            self.client.update_run(run_id, status="RUNNING")
            return run_id, experiment_id
        tags = {RUN_NAME_TAG: description.run_name, RUN_DIR_TAG: str(description.run_dir.resolve())}
        if description.parent is not None:
            parent_id = self._run_of(experiment_id, description.parent)
            if parent_id is None:
                raise LookupError(f"MLflow has no run of {description.parent} yet")
            tags[MLFLOW_PARENT_RUN_ID] = parent_id
        run = self.client.create_run(experiment_id, tags=tags, run_name=description.run_name)
        return str(run.info.run_id), experiment_id

    def _run_of(self, experiment_id: str, run_dir: Path) -> str | None:
        query = f"tags.`{RUN_DIR_TAG}` = '{_quoted(str(run_dir.resolve()))}'"
        found = self.client.search_runs([experiment_id], query, ViewType.ACTIVE_ONLY, max_results=1)
        return str(found[0].info.run_id) if found else None

    def describe(self, run_id: str, description: RunDescription) -> list[str]:
        """Log params, config, tags, note and data sets; the params that now differ, one line each.

        MLflow never changes a param; the config.json artifact always holds what ran last.
        """
        old = dict(self.client.get_run(run_id).data.params)
        new = {key: str(value)[:MAX_PARAM_CHARS] for key, value in description.params.items()}
        missing = [Param(key, value) for key, value in new.items() if key not in old]
        for start in range(0, len(missing), MAX_PARAMS_A_BATCH):
            self.client.log_batch(run_id, params=missing[start : start + MAX_PARAMS_A_BATCH])
        self.set_tags(run_id, description.tags)
        self.set_note(run_id, description.note)
        self.client.log_dict(run_id, dict(description.config), "config.json")
        if description.datasets:
            self.client.log_inputs(run_id, [dataset_input(info) for info in description.datasets])
        return [f"{key} was {old[key]}, is {new[key]}" for key in new if key in old and old[key] != new[key]]

    def sent(self, run_id: str) -> Sent:
        """What the run holds now."""
        points = {
            (key, metric.step)
            for key in self.client.get_run(run_id).data.metrics
            for metric in self.client.get_metric_history(run_id, key)
        }
        names = (Path(file.path).name for file in self.client.list_artifacts(run_id, "images"))
        matches = [match for match in map(_IMAGE_NAME.match, names) if match]
        return Sent(points, {(m["key"].replace("~", "/"), int(m["step"])) for m in matches})

    def send_metrics(self, run_id: str, points: Sequence[Metric]) -> None:
        """At most MAX_METRICS_A_BATCH points in one request."""
        self.client.log_batch(run_id, metrics=points, synchronous=True)

    def send_picture(self, run_id: str, key: str, step: int, path: Path) -> None:
        """One picture of a slider; raises BrokenPictureError for a file that is none."""
        image_HW3 = cv2.imread(str(path))
        if image_HW3 is None:
            raise BrokenPictureError(f"{path} is no picture any more")
        picture = mlflow.Image(cv2.cvtColor(image_HW3, cv2.COLOR_BGR2RGB))
        self.client.log_image(run_id, picture, key=key, step=step, synchronous=True)

    def send_tables(self, run_id: str, tables: Mapping[str, tuple[Sequence[str], Sequence[Any]]]) -> None:
        """Tables as JSON artifacts that the UI shows as tables; each replaces its older self."""
        for path, (columns, rows) in tables.items():
            self.client.log_dict(run_id, {"columns": list(columns), "data": list(rows)}, path)
        listed = json.loads(self.client.get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
        new = [{"path": p, "type": "table"} for p in tables if {"path": p, "type": "table"} not in listed]
        if new:
            self.client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps(listed + new))

    def send_bytes(self, run_id: str, content: bytes, artifact: str) -> None:
        """One small file; replaces its older self."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(artifact).name
            path.write_bytes(content)
            self.client.log_artifact(run_id, str(path), Path(artifact).parent.as_posix().strip(".") or None)

    def send_file(self, run_id: str, path: Path, folder: str) -> None:
        """A file, or a folder's contents, from disk; replaces its older self."""
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), folder or None)
        else:
            self.client.log_artifact(run_id, str(path), folder or None)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Tags of the run; an older value is replaced."""
        if tags:
            self.client.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])

    def set_note(self, run_id: str, note: str) -> None:
        """The description on the run's page."""
        if note:
            self.client.set_tag(run_id, "mlflow.note.content", note[:MAX_NOTE_CHARS])

    def end_run(self, run_id: str, status: Status) -> None:
        """Mark the run as over."""
        self.client.set_terminated(run_id, status)

    def _experiment(self, name: str) -> str:
        """The experiment's id, made where absent; its page opens on training runs with useful columns."""
        self.client.search_experiments(max_results=1)  # makes a new database, before anyone else sees it
        found = self.client.get_experiment_by_name(name)
        if found is None:
            local = self.uri.startswith("sqlite")
            place = (self._runs_dir / "mlartifacts").as_uri() if local else None
            experiment_id = str(self.client.create_experiment(name, artifact_location=place))
        else:
            experiment_id = str(found.experiment_id)
        view = {
            "orderByKey": "attributes.start_time",
            "orderByAsc": False,
            "selectedColumns": [f"metrics.`{key}`" for key in SHOWN_COLUMNS]
            + [f"params.`{key}`" for key in SHOWN_PARAMS],
        }
        tags = {
            "mlflow.experimentKind": "custom_model_development",
            "mlflow.sharedViewState.training": json.dumps(view),
        }
        held = dict(found.tags) if found is not None else {}
        for key, value in tags.items():
            if key not in held:  # a person may have chosen otherwise
                self.client.set_experiment_tag(experiment_id, key, value)
        return experiment_id


def batches(points: Iterable[Metric]) -> list[list[Metric]]:
    """The points in requests that MLflow accepts, oldest steps first."""
    ordered = sorted(points, key=lambda point: (point.step, point.key))
    return [ordered[i : i + MAX_METRICS_A_BATCH] for i in range(0, len(ordered), MAX_METRICS_A_BATCH)]


def _quoted(value: str) -> str:
    return value.replace("'", "''")
