"""Every setting of a run: frozen dataclasses, one section a package, checked when they are made.

`pipeline/recipes.py` makes whole configs; `pipeline/settings.py` sets fields by dotted name. The
resolved config goes into each checkpoint and into MLflow. Constructors elsewhere take the section
or the values that they use, never the whole.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.config.check import require
from pipeline.config.data import AugmentConfig, DataConfig, StoreConfig
from pipeline.config.model import CCS_ONLY, BackboneConfig, HeadConfig, ModelConfig
from pipeline.config.run import DeadlineConfig, LaunchConfig, TrackingConfig
from pipeline.config.train import OptimConfig, TrainConfig

__all__ = [
    "CCS_ONLY", "WITHOUT_NUMBERS", "AugmentConfig", "BackboneConfig", "Config", "DataConfig",
    "DeadlineConfig", "HeadConfig", "LaunchConfig", "ModelConfig", "OptimConfig", "StoreConfig",
    "TrackingConfig", "TrainConfig", "require",
]  # fmt: skip


@dataclass(frozen=True)
class Config:
    """A whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    """Samples."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Network and losses."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Loop."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """Cluster."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    def __post_init__(self) -> None:
        require(
            not self.data.unindexed_train or self.train.determinism == "off",
            f"train.determinism {self.train.determinism} needs an order of samples, which unindexed shards "
            "have not; index them with python jobs/shards.py index, or take --train.determinism off",
        )


WITHOUT_NUMBERS = (
    "launch.", "tracking.", "data.store.", "data.decoded_cache", "data.loader_workers", "data.prefetch",
    "data.worker_timeout_s", "data.quarantine_", "train.max_skipped_steps",
)  # fmt: skip
"""Beginnings of the names of settings that change no pixel and no weight: a resumed run may change them."""
