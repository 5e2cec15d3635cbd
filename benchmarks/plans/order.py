"""What an order of samples is worth: shards that nodes download twice, shards open at the start, mixing.

`before` is the rule this pipeline had first: rank r of W takes position start + r + W·j of 64 streams.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.plan import EpochPlan, fit_streams, rank_positions
from pipeline.world import World

RANKS_PER_NODE, STREAMS, BLOCK = 8, 64, 1024
_DRIVE = 30
"""Samples packed side by side that show the same street: a drive's frames."""


def downloads(ranks: int, batch_per_rank: int, shards: int, per_shard: int) -> dict[str, Any]:
    """Downloads a shard in an epoch, with the old rule and this one, and shards open at the start."""
    counts = np.full(shards, per_shard)
    num_samples, batch_global = shards * per_shard, ranks * batch_per_rank
    streams = fit_streams(STREAMS, num_samples, BLOCK, batch_global)
    row: dict[str, Any] = {"ranks": ranks, "batch_global": batch_global, "streams": streams}
    for rule in ("before", "after"):
        plan = EpochPlan(counts, 0, STREAMS if rule == "before" else streams, BLOCK)
        pairs, at_first, early = 0, set(), 0
        for node in range(ranks // RANKS_PER_NODE):
            positions = np.concatenate([
                _of_node(rule, at, node, ranks, batch_per_rank, streams)
                for at in range(0, num_samples, batch_global)
            ])  # fmt: skip
            shard = plan.at(positions[positions < num_samples])[:, 1]
            pairs += len(np.unique(shard))
            at_first |= set(shard[: RANKS_PER_NODE * batch_per_rank].tolist())
            early = max(early, len(np.unique(shard[: RANKS_PER_NODE * 256])))
        row |= {
            f"downloads_{rule}": pairs / shards,
            f"first_batch_{rule}": len(at_first),
            f"first_256_a_rank_{rule}": early,
        }
    return row


def mixing(batch_global: int, most_streams: int, shards: int, per_shard: int) -> dict[str, Any]:
    """How much likelier than by chance two samples of a batch are of one shard or drive, or neighbours.

    `rank_same_drive` is the share itself, of the pairs in a rank's batch of 4.
    """
    num_samples = shards * per_shard
    streams = fit_streams(most_streams, num_samples, BLOCK, batch_global)
    plan = EpochPlan(np.full(shards, per_shard), 0, streams, BLOCK)
    starts = range(0, num_samples - batch_global + 1, batch_global)
    worlds = [World(rank, batch_global // 4) for rank in range(batch_global // 4)]
    positions = [rank_positions(start, world, 4, streams) for start in starts for world in worlds]
    rows = plan.at(np.concatenate(positions))
    place = rows[:, 1] * per_shard + rows[:, 2]
    drives = -(-per_shard // _DRIVE)
    drive = place // per_shard * drives + place % per_shard // _DRIVE
    lengths = [_DRIVE] * (per_shard // _DRIVE) + [per_shard % _DRIVE]
    chance_of_drive = sum(n * (n - 1) for n in lengths) / per_shard / (num_samples - 1)
    batches, drive_batches = (np.sort(of.reshape(-1, batch_global), axis=1) for of in (place, drive))
    beside = np.count_nonzero(np.diff(batches, axis=1) == 1) / _num_pairs(batches)
    return {
        "batch_global": batch_global,
        "streams": streams,
        "same_shard": _share_of_pairs(batches // per_shard) / ((per_shard - 1) / (num_samples - 1)),
        "same_drive": _share_of_pairs(drive_batches) / chance_of_drive,
        "neighbours": beside / (2 / num_samples),
        "rank_same_drive": _share_of_pairs(np.sort(drive.reshape(-1, 4), axis=1)),
    }


def _of_node(
    rule: str, start: int, node: int, ranks: int, batch_per_rank: int, streams: int
) -> NDArray[np.int64]:
    """A node's positions in a batch; its ranks lie side by side, so together they are a larger rank."""
    if rule == "after":
        world = World(node, ranks // RANKS_PER_NODE)
        return rank_positions(start, world, RANKS_PER_NODE * batch_per_rank, streams)
    first = start + node * RANKS_PER_NODE + np.arange(RANKS_PER_NODE)
    return np.sort((first[:, None] + ranks * np.arange(batch_per_rank)).ravel())


def _share_of_pairs(group_sorted: NDArray[np.int64]) -> float:
    """The share of a batch's pairs that have one group, over all batches; a line is a batch, sorted."""
    same = sum(
        np.count_nonzero(group_sorted[:, gap:] == group_sorted[:, :-gap])
        for gap in range(1, group_sorted.shape[1])
    )
    return same / _num_pairs(group_sorted)


def _num_pairs(batches: NDArray[np.int64]) -> int:
    return len(batches) * math.comb(batches.shape[1], 2)
