"""Settings of the surroundings: the cluster and the tracking server."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from pipeline.config.check import require

WEEK_S = 7 * 24 * 3600
"""Longest wait that can be asked for: longer ones are typing errors, and torch's and Python's overflow."""


@dataclass(frozen=True)
class DeadlineConfig:
    """How long, in seconds, ranks may stand still in a phase before they count as hung and are restarted."""

    silence_s: float = 5.0
    """Longest silence of a rank's process once steps are being made; twelve times that outside of them."""
    start_s: float = 900.0
    """To assemble a run, and for each of an attempt's first steps, which may compile."""
    data_s: float = 150.0
    """For the data of a step: loader workers and stores have time-outs of their own, which speak first."""
    step_s: float = 8.0
    """A step; never less than twenty times the slowest of the last few."""
    evaluate_s: float = 3600.0
    """An evaluation."""
    checkpoint_s: float = 900.0
    """A checkpoint, and what follows the last step."""

    def __post_init__(self) -> None:
        for limit in dataclasses.fields(self):
            _require_wait(f"launch.deadline.{limit.name}", getattr(self, limit.name))


@dataclass(frozen=True)
class LaunchConfig:
    """How the cluster is used. Nothing here changes a number.

    But for its last bits: those depend on `threads_per_worker` on CPUs. `train.determinism` sees to it.
    """

    use_gpu: Literal["auto", "yes", "no"] = "auto"
    """One GPU a worker; `auto` where the cluster has as many GPUs as workers."""
    threads_per_worker: int = 1
    """CPUs that a worker computes with, beside its loader workers; with a GPU one is enough."""
    collective_timeout_s: int = 300
    """Longest wait of a collective before the worker group is restarted."""
    max_failures: int = 3
    """Worker-group restarts after a failure before the job gives up."""
    spares: bool = True
    """Keep processes for a restart started and loaded: one a rank and three for Ray Train, 0.3 GB each."""
    deadline: DeadlineConfig = field(default_factory=DeadlineConfig)
    """When a rank counts as hung."""
    workers_wait_s: int = 300
    """Longest wait for room for the fewest workers, as after a node was lost; then the job ends with 75."""

    def __post_init__(self) -> None:
        require(
            self.threads_per_worker >= 1,
            f"launch.threads_per_worker must be at least 1, got {self.threads_per_worker}",
        )
        _require_wait("launch.collective_timeout_s", self.collective_timeout_s)
        _require_wait("launch.workers_wait_s", self.workers_wait_s)
        require(self.max_failures >= 0, f"launch.max_failures must be at least 0, got {self.max_failures}")


@dataclass(frozen=True)
class TrackingConfig:
    """Where runs and models are recorded; the server is taken from MLFLOW_TRACKING_URI."""

    experiment: str = "ccs"
    """MLflow experiment of the run."""
    registered_model: str = "mini-ccs"
    """Name under which the best model is registered; empty registers nothing."""
    wait_s: int = 60
    """Longest wait at the end for a server that does not answer; what it lacks then stays in the journal, and
    the same command with the same --name ships it."""

    def __post_init__(self) -> None:
        _require_wait("tracking.wait_s", self.wait_s)


def _require_wait(name: str, seconds: float) -> None:
    """Raises ConfigError for a wait of less than a second or more than a week."""
    require(
        1 <= seconds <= WEEK_S,
        f"{name} must be at least 1 second, at most {WEEK_S} (a week), got {seconds}",
    )
