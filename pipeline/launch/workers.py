"""How many workers a cluster has room for, and what each of them takes."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.launch.world_size import (
    WorldRange,
    at_world_size,
    choose_world_size,
    refuse_range_of_exact,
)


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


def plan_workers(typed: WorldRange | None, config: Config, room: Room) -> Workers:
    """The worker group that was asked for; without a number, one a GPU, or up to two on CPUs.

    Of a range, and without a number, it is the largest one that also divides the batch. Raises
    ConfigError, with the number that fits, where the cluster is too small: Ray would wait for the
    missing CPUs for ever.
    """
    refuse_range_of_exact(config, typed)
    cpus_each = config.launch.threads_per_worker + config.data.loader_workers
    use_gpu = config.launch.use_gpu == "yes" or (
        config.launch.use_gpu == "auto" and room.gpus >= max(1, typed.least if typed else 1)
    )
    fits = min(room.cpus // cpus_each, room.gpus) if use_gpu else room.cpus // cpus_each
    wanted = typed or WorldRange(1, fits if use_gpu else min(2, fits))
    if max(1, wanted.least) > fits:
        cure = f"--workers {fits} fits" if fits else _cure(config, room, use_gpu=use_gpu)
        gpu, gpus = (" and a GPU", f" and {room.gpus} GPUs") if use_gpu else ("", "")
        raise ConfigError(
            f"--workers {wanted.least} does not fit: each takes {cpus_each} CPUs "
            f"({config.data.loader_workers} of them to load){gpu}, and the cluster has {room.cpus} "
            f"CPUs{gpus}; {cure}"
        )
    return Workers(_largest(config, typed, wanted, fits), cpus_each, use_gpu)


def _largest(config: Config, typed: WorldRange | None, wanted: WorldRange, fits: int) -> int:
    """The number of ranks: as typed; of a range or without one, the largest that divides the batch."""
    if typed is None:
        train = config.train
        parts = train.batch_global // train.accumulation
        if train.determinism == "elastic":
            parts = train.virtual_shards
        num = next((n for n in range(wanted.most, 1, -1) if parts % n == 0), 1)
    else:
        num = choose_world_size(config, typed, fits) or typed.least
    at_world_size(config, typed or WorldRange(num, num), num)
    return num


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
