"""How many workers a cluster has room for, and what each of them takes."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import Config
from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Room:
    """What a cluster has in all."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Workers:
    """A worker group: `num` ranks, each with `cpus_each` CPUs and, with `use_gpu`, one GPU."""

    num: int
    cpus_each: int
    use_gpu: bool


def plan_workers(typed: int | None, config: Config, room: Room) -> Workers:
    """The worker group that was asked for; without a number, one a GPU, or up to two on CPUs.

    Without a number it is the largest one that also divides the batch. Raises ConfigError, with the
    number that fits, where the cluster is too small: Ray would wait for the missing CPUs for ever.
    """
    cpus_each = config.launch.threads_per_worker + config.data.loader_workers
    if typed is not None and typed < 1:
        raise ConfigError(f"--workers must be at least 1, got {typed}")
    use_gpu = config.launch.use_gpu == "yes" or (
        config.launch.use_gpu == "auto" and room.gpus >= max(1, typed or 1)
    )
    fits = min(room.cpus // cpus_each, room.gpus) if use_gpu else room.cpus // cpus_each
    wanted = typed or _largest_divisor(config, fits if use_gpu else min(2, fits))
    if wanted > fits:
        cure = f"--workers {fits} fits" if fits else _cure(config, room, use_gpu=use_gpu)
        gpu, gpus = (" and a GPU", f" and {room.gpus} GPUs") if use_gpu else ("", "")
        raise ConfigError(
            f"--workers {wanted} does not fit: each takes {cpus_each} CPUs ({config.data.loader_workers} "
            f"of them to load){gpu}, and the cluster has {room.cpus} CPUs{gpus}; {cure}"
        )
    config.train.micro_batch_per_rank(wanted)
    return Workers(wanted, cpus_each, use_gpu)


def _largest_divisor(config: Config, most: int) -> int:
    """The largest number up to `most`, and at least 1, that parts the batch evenly."""
    train = config.train
    parts = train.batch_global // train.accumulation
    if train.determinism == "elastic":
        parts = train.virtual_shards
    return next((n for n in range(most, 1, -1) if parts % n == 0), 1)


def _cure(config: Config, room: Room, *, use_gpu: bool) -> str:
    """What to type where not even one worker fits: the largest numbers with which one does."""
    if use_gpu and room.gpus == 0:
        return "type --launch.use_gpu no to train on CPUs"
    threads = min(config.launch.threads_per_worker, room.cpus)
    if threads == 0:
        return "take a larger cluster"
    loaders = min(config.data.loader_workers, room.cpus - threads)
    words = ["type"]
    if loaders < config.data.loader_workers:
        words.append(f"--data.loader_workers {loaders}")
    if threads < config.launch.threads_per_worker:
        words.append(f"--launch.threads_per_worker {threads}")
    return f"{' '.join(words)}, or take a larger cluster"
