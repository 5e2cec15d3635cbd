"""Settings of the surroundings: the cluster and the tracking server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.config.check import require


@dataclass(frozen=True)
class LaunchConfig:
    """How the cluster is used. Nothing here changes a number."""

    use_gpu: Literal["auto", "yes", "no"] = "auto"
    """One GPU a worker; `auto` where the cluster has as many GPUs as workers."""
    threads_per_worker: int = 1
    """CPUs that a worker computes with, beside its loader workers; with a GPU one is enough."""
    collective_timeout_s: int = 300
    """Longest wait of a collective before the worker group is restarted."""
    max_failures: int = 3
    """Worker-group restarts after a failure before the job gives up."""
    workers_wait_s: int = 300
    """Longest wait for room for the fewest workers, as after a node was lost; then the job ends with 75."""

    def __post_init__(self) -> None:
        for name in ("threads_per_worker", "collective_timeout_s", "workers_wait_s"):
            value = getattr(self, name)
            require(value >= 1, f"launch.{name} must be at least 1, got {value}")
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
        require(self.wait_s >= 1, f"tracking.wait_s must be at least 1, got {self.wait_s}")
