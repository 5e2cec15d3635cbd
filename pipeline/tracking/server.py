"""Which MLflow is meant, and how long a call to it may take; known before mlflow itself is imported."""

from __future__ import annotations

import logging
import os
from pathlib import Path

PENDING = "mlflow-pending.json"
"""What a finished job still owes MLflow, in the run's folder."""


def tracking_uri(runs_dir: Path) -> str:
    """MLFLOW_TRACKING_URI where it is set, else a database in the runs folder, as an absolute path."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs_dir.resolve()}/mlflow.db"


def has_pending(run_dir: Path) -> bool:
    """True where an earlier job of the run noted what MLflow lacks (`pipeline/tracking/pending.py`)."""
    return (run_dir / PENDING).exists()


def be_impatient() -> None:
    """Bound what one call may take (MLflow's own limits add up to four minutes) and quiet its chatter.

    Limits that are set in the environment win.
    """
    limits = {"TIMEOUT": "20", "MAX_RETRIES": "1", "BACKOFF_FACTOR": "1"}
    for name, value in limits.items():
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow.store").setLevel(logging.WARNING)  # two lines on a new database
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # what a GPU does not tell, each time
    logging.getLogger("alembic").setLevel(logging.WARNING)  # one line a migration of a new database
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # a warning a retry


def runs_folder(typed: str | None) -> Path:
    """The folder of the runs: as typed, else the checkout's `runs/` where it has a database, else ~/ccs-runs.

    The last two are where `make train` and the training job put them.
    """
    if typed is not None:
        return Path(typed)
    checkout = Path(__file__).resolve().parents[2] / "runs"
    return checkout if (checkout / "mlflow.db").is_file() else Path.home() / "ccs-runs"
