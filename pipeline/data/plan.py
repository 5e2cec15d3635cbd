"""The order of samples: position → (epoch, shard, sample), the only state that training's data has.

A position counts samples consumed by the whole job since its first step. In every epoch each sample
has exactly one position, whatever the world size, the batch size, and the chain of stops and resumes;
batches cross the borders of epochs, so every rank always has equal batches with nothing padded,
repeated or dropped.

How: per epoch the shards are permuted and laid end to end; that line is cut into equal streams at
sample granularity; inside a stream, blocks of samples are permuted; positions go round the streams.
A data set smaller than a block is one stream, hence shuffled uniformly. Ranks part a batch by streams,
so that each node reads, and downloads, its own shards alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.data.draws import Purpose, permutation
from pipeline.errors import ShardError
from pipeline.world import World

PLAN_FORMAT = "epoch-plan/2"
"""Changes with anything that changes the order; a resume under another one is refused."""


def fit_streams(streams: int, num_samples: int, block: int, batch_global: int) -> int:
    """The number of streams that goes into the batch, so that ranks, and nodes, can be dealt whole ones.

    At most `streams`, and one a block. It is a multiple of the global batch, or where that is larger one
    of its divisors: of those that keep half of the streams the one with the most divisors, so that 3 or
    6 nodes part it as well as 8 do. Where there is none the streams stay as they are, and nodes share
    those at their borders. `batch_global` is what all ranks read in a step: it is the same at any world
    size and with any accumulation, so the order is.
    """
    most = _most_streams(streams, num_samples, block)
    if batch_global <= most:
        return most // batch_global * batch_global
    divisors = [fit for fit in range(-(-most // 2), most + 1) if batch_global % fit == 0]
    return max(divisors, key=lambda fit: (_num_divisors(fit), fit), default=most)


def rank_positions(start: int, world: World, samples_per_rank: int, streams: int) -> NDArray[np.int64]:
    """The positions of this rank in the global batch that begins at `start`, ascending int64.

    Ordered by stream, then by turn, the batch is cut into equal parts, and rank r takes part r: so a
    rank, and hence a node, keeps to its own streams, and no two nodes read the same shards. All ranks
    together have the batch, each position once, whatever their number; one rank alone has its range.
    """
    return start + _offsets(start % streams, world.rank, world.size, samples_per_rank, streams)


@dataclass(frozen=True)
class StepParts:
    """How the samples of an optimizer step are parted into micro-batches."""

    micro_batches: int = 1
    """Of each rank."""
    virtual_shards: bool = False
    """All of them are equal parts of the step, each the same whatever the world size, as long as there are as
    many in all; otherwise what all ranks take at once is the same, as long as each rank takes as many."""

    def positions(self, start: int, world: World, samples: int, streams: int) -> NDArray[np.int64]:
        """Positions of this rank in the step from `start`, so many for each of its micro-batches in turn."""
        num, together = self.micro_batches, world.size * samples
        if self.virtual_shards:
            shards = [World(world.rank * num + micro, world.size * num) for micro in range(num)]
            parts = [rank_positions(start, shard, samples, streams) for shard in shards]
        else:
            starts = range(start, start + num * together, together)
            parts = [rank_positions(begin, world, samples, streams) for begin in starts]
        return np.concatenate(parts)


@lru_cache(maxsize=256)  # a fitted batch has few phases, and working one out costs as much as ten samples
def _offsets(phase: int, rank: int, size: int, samples_per_rank: int, streams: int) -> NDArray[np.int64]:
    """A rank's offsets into a batch whose first position is `phase` modulo `streams`."""
    # Streams follow each other round robin, so within an epoch position % streams names one. How many
    # of the batch are in each is known without listing the batch, which other ranks' samples make long.
    stream = np.arange(streams, dtype=np.int64)
    first = (stream - phase) % streams  # its first offset into the batch
    length = size * samples_per_rank
    ends = np.cumsum(-(-(length - np.minimum(first, length)) // streams))
    mine = np.arange(samples_per_rank, dtype=np.int64) + rank * samples_per_rank
    at = np.searchsorted(ends, mine, side="right")
    turn = mine - np.where(at > 0, ends[at - 1], 0)
    return np.sort(first[at] + turn * streams)


class EpochPlan:
    """A bijection between positions and samples in every epoch.

    `counts` are the samples of each shard (0 is allowed); `streams` and `block` bound how many shards
    are open at a time and how far samples are mixed. Without `shuffle` shards and blocks keep their
    order. Raises ShardError when there is no sample at all.
    """

    def __init__(
        self,
        counts: Sequence[int] | NDArray[np.int64],
        seed: int,
        streams: int = 64,
        block: int = 1024,
        shuffle: bool = True,
    ) -> None:
        assert streams >= 1, streams
        assert block >= 1, block
        self._counts = np.asarray(counts, np.int64)
        assert self._counts.ndim == 1
        assert not np.any(self._counts < 0)
        self.num_samples = int(self._counts.sum())
        if self.num_samples == 0:
            raise ShardError(f"no samples in {len(self._counts)} shards: there is nothing to go through")
        self._seed, self._block, self._shuffle = seed, block, shuffle
        self.num_streams = num_streams = _most_streams(streams, self.num_samples, block)
        # The first streams are the longer ones: so stream = position % streams holds to an epoch's end.
        rounds, longer = divmod(self.num_samples, num_streams)
        stream = np.arange(num_streams + 1, dtype=np.int64)
        self._start = stream * rounds + np.minimum(stream, longer)
        self._shards_of = lru_cache(maxsize=2)(self._permute_shards)
        # Every stream needs its current block, and its next one before the last stream leaves this one.
        self._block_of = lru_cache(maxsize=2 * num_streams + 2)(self._permute_block)

    def constants(self) -> dict[str, str | int | bool]:
        """Everything but the counts that the order depends on, as JSON values."""
        return {
            "format": PLAN_FORMAT,
            "seed": self._seed,
            "streams": self.num_streams,
            "block": self._block,
            "shuffle": self._shuffle,
        }

    def at(self, positions: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """(n, 3) int64 rows of epoch, shard and sample in the shard, for n positions >= 0."""
        position = np.asarray(positions, np.int64)
        assert position.ndim == 1
        assert not np.any(position < 0)
        epoch, within = np.divmod(position, self.num_samples)
        turn, stream = np.divmod(within, self.num_streams)
        place = self._place(epoch, stream, turn)
        row = np.empty((len(position), 3), np.int64)
        row[:, 0] = epoch
        for e in _distinct(epoch):
            here = epoch == e
            shards, ends = self._shards_of(e)
            at = np.searchsorted(ends, place[here], side="right")  # steps over empty shards
            row[here, 1] = shards[at]
            row[here, 2] = place[here] - (ends[at] - self._counts[shards[at]])
        return row

    def _place(
        self, epoch: NDArray[np.int64], stream: NDArray[np.int64], turn: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Place on the epoch's line of shards: the turn, permuted inside its block."""
        block, offset = np.divmod(turn, self._block)
        first = self._start[stream] + block * self._block
        if not self._shuffle:
            return np.asarray(first + offset, np.int64)
        order = np.lexsort((block, stream, epoch))
        e, s, b = epoch[order], stream[order], block[order]
        new = np.ones(len(order), bool)
        new[1:] = (e[1:] != e[:-1]) | (s[1:] != s[:-1]) | (b[1:] != b[:-1])
        begins = np.flatnonzero(new)
        place: NDArray[np.int64] = first.copy()
        for begin, end in zip(begins, np.append(begins, len(order))[1:], strict=True):
            group = order[begin:end]
            place[group] += self._block_of(int(e[begin]), int(s[begin]), int(b[begin]))[offset[group]]
        return place

    def _permute_shards(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's order of shards, and where each ends on the line."""
        if self._shuffle:
            shards = permutation(self._seed, Purpose.SHARDS, (epoch, 0, 0), len(self._counts))
        else:
            shards = np.arange(len(self._counts), dtype=np.int64)
        return shards, np.cumsum(self._counts[shards])

    def _permute_block(self, epoch: int, stream: int, block: int) -> NDArray[np.int64]:
        length = int(self._start[stream + 1] - self._start[stream]) - block * self._block
        return permutation(self._seed, Purpose.BLOCK, (epoch, stream, block), min(self._block, length))


def _most_streams(streams: int, num_samples: int, block: int) -> int:
    """Streams at most: one a block, as more would only narrow the mixing of a small data set."""
    return min(streams, -(-num_samples // block))


def _num_divisors(number: int) -> int:
    return sum(number % divisor == 0 for divisor in range(1, number + 1))


def _distinct(epoch: NDArray[np.int64]) -> list[int]:
    """The values in a mostly constant array; np.unique costs more than all the rest for a batch."""
    if len(epoch) == 0:
        return []
    low, high = int(epoch.min()), int(epoch.max())
    return [low] if low == high else [int(e) for e in np.unique(epoch)]
