"""Shards brought to this machine's disk ahead of their use: all of them, or those that a run begins with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipeline.config import DataConfig, StoreConfig
from pipeline.data.dataset import ShardDataset
from pipeline.data.plan import EpochPlan, fit_streams
from pipeline.data.shard_table import ShardEntry
from pipeline.data.store.address import is_address
from pipeline.data.store.remote import RemoteStore

_LOOK_AGAIN_S = 0.2
_CLOCKS_S = 1.0
"""What a disk's clock may be behind."""


@dataclass(frozen=True)
class Staged:
    """What lies on this machine's disk, and the shards for which it had no room."""

    shards: int = 0
    bytes: int = 0
    left_out: int = 0


def stage_shards(
    root: str,
    shards: Sequence[ShardEntry],
    config: StoreConfig,
    report: Callable[[Staged], None] = lambda _: None,
) -> Staged:
    """What is here once all shards are, or once the cache is full; local shards are where they are.

    What is brought first stays: where there is no room, the later ones are left out. `report` is told
    after every shard. Raises a PipelineError for a shard that cannot be had. Several processes may stage
    the same: each shard comes once.
    """
    staged = Staged()
    if not is_address(root):
        return staged
    store, begin_s = RemoteStore(root, config, quiet=True), time.time() - _CLOCKS_S

    def bring(shard: ShardEntry) -> bool:
        return _bring(store, shard, begin_s)

    pool = ThreadPoolExecutor(config.downloads, thread_name_prefix="shard-stage")
    try:
        for shard, here in zip(shards, pool.map(bring, shards), strict=True):
            if here:
                staged = Staged(staged.shards + 1, staged.bytes + shard.bytes, staged.left_out)
            else:
                staged = Staged(staged.shards, staged.bytes, staged.left_out + 1)
            report(staged)
        return staged
    finally:
        store.close()
        pool.shutdown(cancel_futures=True)


def first_shards(
    training: ShardDataset, config: DataConfig, seed: int, batch_global: int, samples: range
) -> list[ShardEntry]:
    """The shards of these samples of the order, those that are needed first before the others.

    `batch_global` is what all ranks read in a step, as the order of samples depends on it.
    """
    streams = fit_streams(config.streams, len(training), config.block, batch_global)
    plan = EpochPlan(training.counts, seed, streams, config.block)
    shards, first = np.unique(plan.at(samples)[:, 1], return_index=True)
    return [training.split.shards[int(shard)] for shard in shards[np.argsort(first)]]


def _bring(store: RemoteStore, shard: ShardEntry, begin_s: float) -> bool:
    """True once the shard is here, by this process or by another of this machine; False without room."""
    while (outcome := store.bring(shard, begin_s)) == "elsewhere":
        time.sleep(_LOOK_AGAIN_S)
    return outcome == "here"
