"""How many ranks an attempt takes, and how these part the global batch: plain numbers, no cluster."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

from pipeline.config import Config
from pipeline.errors import ConfigError

RANGE = re.compile(r"(\d{1,9})(?::(\d{1,9}))?")


@dataclass(frozen=True)
class WorldRange:
    """The fewest and the most ranks that a job may run on."""

    least: int
    most: int


def read_workers(typed: str | None) -> WorldRange | None:
    """`4` → exactly four ranks, `2:8` → two to eight of them; raises ConfigError for anything else."""
    if typed is None:
        return None
    found = RANGE.fullmatch(typed)
    if found is None:
        raise ConfigError(f"--workers takes a number of ranks, or MIN:MAX, got {typed!r}")
    least, most = int(found[1]), int(found[2] or found[1])
    if least < 1:
        raise ConfigError(f"--workers must be at least 1, got {typed}")
    if most < least:
        raise ConfigError(f"--workers {typed}: the most ranks must not be fewer than the least")
    return WorldRange(least, most)


def is_admissible(config: Config, world_size: int) -> bool:
    """True where so many ranks can take equal parts of the global batch, or equally many virtual shards."""
    train = config.train
    parts = train.virtual_shards if train.determinism == "elastic" else train.batch_global
    return parts % world_size == 0


def choose_world_size(config: Config, wanted: WorldRange, fits: int) -> int | None:
    """The largest admissible number of ranks within the range for which there is room; None without one."""
    candidates = range(min(wanted.most, fits), wanted.least - 1, -1)
    return next((size for size in candidates if is_admissible(config, size)), None)


def refuse_range_of_exact(config: Config, typed: WorldRange | None) -> None:
    """Raises ConfigError for a range where the promise holds for one number of ranks."""
    if typed and typed.least != typed.most and config.train.determinism == "exact":
        raise ConfigError(
            f"--workers {typed.least}:{typed.most} and train.determinism exact: it keeps its bits with one "
            f"number of ranks; type --workers {typed.most}, or --train.determinism elastic"
        )


def at_world_size(config: Config, wanted: WorldRange, world_size: int) -> Config:
    """The config with `train.accumulation` for so many ranks: global batch and learning rate stay.

    The settings are those of the largest world of the range. A smaller one accumulates more
    micro-batches, as few as keep a micro-batch of a rank at most as large as there, so that memory
    suffices; where the numbers allow it it is as large, and BatchNorm sees the same number of samples.
    Raises ConfigError where the largest world itself does not divide the batch.
    """
    largest = choose_world_size(config, wanted, wanted.most) or wanted.most
    most_samples = config.train.micro_batch_per_rank(largest)
    if world_size == largest or config.train.determinism == "elastic":  # shards are what they are anywhere
        return config
    share = config.train.batch_global // world_size
    accumulation = next(n for n in range(-(-share // most_samples), share + 1) if share % n == 0)
    return dataclasses.replace(config, train=dataclasses.replace(config.train, accumulation=accumulation))
