"""Recipes: functions that return a whole config, found by the name that `--recipe` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from pipeline.config import (
    AugmentConfig,
    BackboneConfig,
    Config,
    DataConfig,
    HeadConfig,
    ModelConfig,
    OptimConfig,
    TrackingConfig,
    TrainConfig,
)
from pipeline.errors import ConfigError, nearest


def laptop() -> Config:
    """The mini data set on two CPU cores in a few minutes: half-width ResNet-18 at stride 8."""
    return Config(
        data=DataConfig(
            input_height=128, input_width=256, crop_height=128, crop_width=256,
            augment=AugmentConfig(scale_min=0.75, scale_max=1.5),
        ),
        model=ModelConfig(backbone=BackboneConfig(depth=18, base_width=32)),
        optim=OptimConfig(name="adamw", lr=3e-3, weight_decay=1e-2, warmup_steps=20, min_lr=0.0),
        train=TrainConfig(steps=500, batch_global=8, evaluate_every=100, checkpoint_every=100),
        tracking=TrackingConfig(experiment="mini", registered_model="mini-ccs"),
    )  # fmt: skip


def camvid() -> Config:
    """CamVid (480x360) at half its size, from scratch on two CPU cores in under twenty minutes."""
    return Config(
        data=DataConfig(input_height=180, input_width=240, crop_height=180, crop_width=240),
        model=ModelConfig(backbone=BackboneConfig(depth=18, base_width=32)),
        optim=OptimConfig(name="adamw", lr=1e-3, weight_decay=1e-2, warmup_steps=50, min_lr=0.0),
        train=TrainConfig(steps=2000, batch_global=8, evaluate_every=250, checkpoint_every=250),
        tracking=TrackingConfig(experiment="camvid", registered_model="camvid-ccs"),
    )


def _cityscapes(depth: Literal[50, 101]) -> Config:
    return Config(
        data=DataConfig(
            input_height=1024, input_width=2048, crop_height=512, crop_width=1024, loader_workers=2
        ),
        model=ModelConfig(backbone=BackboneConfig(depth=depth, stem="v1c"), head=HeadConfig(dim=512)),
        optim=OptimConfig(name="sgd", lr=0.01, momentum=0.9, weight_decay=5e-4, min_lr=1e-4),
        train=TrainConfig(
            steps=80_000, batch_global=8, sync_batch_norm=True, evaluate_every=4000,
            checkpoint_every=1000, eval_batch_per_rank=1, log_every_s=30.0,
        ),
        tracking=TrackingConfig(experiment="cityscapes", registered_model="cityscapes-ccs"),
    )  # fmt: skip


def cityscapes_r50() -> Config:
    """The field's Cityscapes schedule with ResNet-50 V1c at stride 8."""
    return _cityscapes(50)


def cityscapes_r101() -> Config:
    """The field's Cityscapes schedule with ResNet-101 V1c at stride 8."""
    return _cityscapes(101)


RECIPES: Mapping[str, Callable[[], Config]] = {
    "laptop": laptop,
    "camvid": camvid,
    "cityscapes-r50": cityscapes_r50,
    "cityscapes-r101": cityscapes_r101,
}


def recipe(name: str) -> Config:
    """The recipe of that name; raises ConfigError with the nearest name."""
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {name!r}{nearest(name, RECIPES)}; known: {', '.join(RECIPES)}")
    return RECIPES[name]()
