"""What a finished job still owes MLflow, kept in the run's folder until it could be shipped."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.tracking.dataset_source import DatasetInfo
from pipeline.tracking.mlflow_store import RunDescription, Status
from pipeline.tracking.server import PENDING, has_pending

logger = logging.getLogger(__name__)

SENT = "mlflow-run.json"
"""Where a trial's run is in MLflow, which has all of it."""


@dataclass(frozen=True)
class Pending:
    """A run that ended while the server was away; its metrics and pictures are in the journal."""

    description: RunDescription
    status: Status
    artifacts: Sequence[tuple[Path, str]]
    children: Sequence[Path] = ()
    """Folders of the runs below it that have a note of their own."""


def save_pending(
    description: RunDescription,
    status: Status,
    artifacts: Sequence[tuple[Path, str]],
    children: Sequence[Path] = (),
) -> None:
    """Note what is owed; a disk that refuses costs a warning, as the training itself is safe."""
    content = {
        "description": dataclasses.asdict(description),
        "status": status,
        "artifacts": [[str(path), folder] for path, folder in artifacts],
        "children": [str(child) for child in children],
    }
    _note(description.run_dir / PENDING, content, "what MLflow lacks")


def load_pending(run_dir: Path) -> Pending | None:
    """What is owed, or None; a note that cannot be read is left where it is, with a warning."""
    path = run_dir / PENDING
    try:
        content = json.loads(path.read_text())
        values = content["description"]
        runs_dir, run_dir = Path(values.pop("runs_dir")), Path(values.pop("run_dir"))
        parent = values.pop("parent")
        datasets = tuple(
            DatasetInfo(**{**info, "classes": tuple(info["classes"])}) for info in values.pop("datasets")
        )
        description = RunDescription(
            runs_dir, run_dir, **values, datasets=datasets, parent=Path(parent) if parent else None
        )
        artifacts = [(Path(name), folder) for name, folder in content["artifacts"]]
        return Pending(description, content["status"], artifacts, [Path(c) for c in content["children"]])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("[event] %s cannot be read (%s); MLflow stays as it is", path, error)
        return None


def forget_pending(run_dir: Path) -> None:
    """Nothing is owed any more."""
    (run_dir / PENDING).unlink(missing_ok=True)


def save_sent(run_dir: Path, run_id: str, tracking_uri: str) -> None:
    """Note that MLflow has all of a run, so that a later job need not ask."""
    _note(run_dir / SENT, {"run_id": run_id, "tracking_uri": tracking_uri}, "that MLflow has all")


def sent_run_id(run_dir: Path, tracking_uri: str) -> str | None:
    """The run that has all of it at that MLflow; None where something is owed, or nothing was ever sent."""
    try:
        content = json.loads((run_dir / SENT).read_text())
        whole = content["tracking_uri"] == tracking_uri and not has_pending(run_dir)
        return str(content["run_id"]) if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # then it is sent once more, which changes nothing


def _note(path: Path, content: dict[str, Any], what: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(content, default=str))
        part.replace(path)
    except OSError as error:
        logger.warning("[event] cannot note in %s %s: %s", path, what, error.strerror)
