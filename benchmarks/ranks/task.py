"""What a group of measured ranks is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.config import Config
from pipeline.recipes import recipe
from pipeline.settings import with_settings

_MANY_STEPS = 1_000_000
"""Longer than any benchmark, so that the learning rate is where training begins."""


@dataclass(frozen=True)
class Variant:
    """A setting of determinism, and the one that it is compared with."""

    name: str
    versus: str
    micro_batches: int
    settings: dict[str, str]


@dataclass(frozen=True)
class RanksTask:
    """One network on a group of ranks; plain values, so that it travels as JSON."""

    recipe: str
    size: int
    threads: int
    blocks: int
    """Blocks of each variant that count."""
    block: int
    """Steps of a block."""
    warm_up: int
    """Blocks of each variant before the first that counts."""
    settings: dict[str, str]
    variants: list[Variant]

    def config(self, variant: Variant) -> Config:
        """The recipe as the variant has it."""
        fixed = {"train.steps": _MANY_STEPS, "train.sync_batch_norm": False, "launch.use_gpu": "no"}
        threads = {"launch.threads_per_worker": self.threads}
        return with_settings(recipe(self.recipe), fixed | threads | self.settings | variant.settings)

    @staticmethod
    def from_json(values: dict[str, Any]) -> RanksTask:
        """The task that `asdict` made values of."""
        return RanksTask(**values | {"variants": [Variant(**variant) for variant in values["variants"]]})
