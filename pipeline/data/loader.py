"""A rank's training batches: endless, from any position, the same however they are read.

A batch is a pure function of (data set, config, seed, world, batch size, position). Reading it with
any number of loader workers, over workers that are killed, or after a resume anywhere, gives the same
pixels in the same order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataConfig
from pipeline.data import augment as crops
from pipeline.data.crop_writer import CropWriter
from pipeline.data.dataset import ShardDataset
from pipeline.data.lookahead import Lookahead, Row
from pipeline.data.plan import EpochPlan, StepParts, fit_streams
from pipeline.data.quarantine import Quarantine, quarantined_crop
from pipeline.data.reader import SampleRef
from pipeline.data.slots import SlotArrays, SlotRing
from pipeline.data.store.address import is_address
from pipeline.data.tasks import Reply, Setup, Task
from pipeline.data.worker_pool import OwnThread, SampleReaders, WorkerPool
from pipeline.errors import CheckpointError, PipelineError, SampleError
from pipeline.world import World

WHOLE_STEPS = StepParts()
_LOOKUP = 256
"""Positions looked up in the plan at a time: enough for the look-up to cost a few µs a sample."""


@dataclass(frozen=True)
class Batch:
    """A rank's share of a micro-batch, in the order of its positions.

    The arrays are views of a slot that is used again once nothing refers to them, nor to tensors made
    of them: copy what shall be kept for long, and pass no bare address on.
    """

    image_BHW3: NDArray[np.uint8]
    label_BHW: NDArray[np.uint8]
    positions: tuple[int, ...]
    keys: tuple[str, ...]
    colour_B34: NDArray[np.float32] | None = None
    """What the colours inside become on the device; None where they have changed already."""
    inside_B4: NDArray[np.int64] | None = None
    """Top, bottom, left and right of what is picture in each crop and not padding."""
    num_quarantined: int = 0
    """Crops that stand for a damaged sample."""


@dataclass(frozen=True)
class LoaderUsage:
    """What reading has cost so far; where it was done by several workers, the sum over them."""

    samples: int = 0
    """Samples read."""
    store_s: float = 0.0
    """Seconds spent on waiting for bytes."""
    decode_s: float = 0.0
    """Seconds spent on decoding, cropping and colours."""
    workers: int = 0
    """Loader workers; none where the training thread reads."""
    restarts: int = 0
    """Workers that were replaced."""


@dataclass
class _Filling:
    """A batch whose samples are being read."""

    first: int
    arrays: SlotArrays
    positions: list[int]
    refs: list[SampleRef]
    left: int
    errors: dict[int, PipelineError] = field(default_factory=dict)


class TrainLoader:
    """One rank's training batches.

    A step takes as many as `parts` says: the order of samples depends on what all ranks read in a step.
    Damaged samples go to the `quarantine`; without one, they are errors.
    """

    def __init__(
        self, dataset: ShardDataset, config: DataConfig, seed: int, world: World, batch_per_rank: int,
        *, parts: StepParts = WHOLE_STEPS, quarantine: Quarantine | None = None,
    ) -> None:  # fmt: skip
        assert batch_per_rank >= 1, batch_per_rank
        self._dataset, self._config, self._quarantine = dataset, config, quarantine
        self._world, self._batch_per_rank, self._parts = world, batch_per_rank, parts
        self._setup = Setup(dataset.root, dataset.classes.num_classes, config, seed, batch_per_rank)
        batch_global = world.size * batch_per_rank * parts.micro_batches
        streams = fit_streams(config.streams, len(dataset), config.block, batch_global)
        self._plan = EpochPlan(dataset.counts, seed, streams, config.block)
        self._usage = LoaderUsage(workers=config.loader_workers)
        cv2.setNumThreads(0)  # its own pool would compete with workers and training threads for the cores

    def batches(self, position: int) -> Generator[Batch, None, None]:
        """Endless batches from a position at which a step begins: the micro-batches of step after step.

        Closing the generator ends its workers. Raises, at the sample's turn, what refuses a sample, and
        WorldStateError where workers cannot be kept alive.
        """
        workers = self._config.loader_workers
        ahead = max(1, self._config.prefetch * workers)
        numbers = count(0, self._batch_per_rank)
        filling: deque[_Filling] = deque()
        with (
            closing(SlotRing(self._setup.layout, shared=workers > 0)) as ring,
            closing(self._readers(ring)) as readers,
        ):
            rows = self._rows_ahead(position, readers)
            while True:
                while len(filling) < ahead:
                    filling.append(self._begin(next(numbers), rows, ring, readers))
                self._await_first(filling, readers, rows)
                yield self._finish(filling.popleft())

    def usage(self) -> LoaderUsage:
        """What reading has cost so far."""
        return self._usage

    def order(self) -> dict[str, Any]:
        """What the samples and pixels of a position depend on, as JSON values, for checkpoints."""
        part = self._dataset.part
        return {
            "manifest_id": self._dataset.manifest.id,
            "split": self._dataset.split.name,
            "plan": self._plan.constants(),
            "augment": crops.constants(self._config),
        } | ({"held_out": ",".join(part.drives)} if part else {})

    @staticmethod
    def refuse_other_order(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
        """Raises CheckpointError naming the first field in which a saved `order()` is not this one."""
        before, now = _flat(saved), _flat(current)
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise CheckpointError(
                    f"the checkpoint was made with {name} = {before.get(name)!r}, this run has "
                    f"{now.get(name)!r}: its position means other samples here; "
                    "take the recorded data and settings, or another --name"
                )

    def _readers(self, ring: SlotRing) -> SampleReaders:
        if self._config.loader_workers:
            return WorkerPool(self._config.loader_workers, self._setup, ring.descriptor)
        reader = self._dataset.reader(self._config.decoded_cache)
        writer = CropWriter(reader, self._config, self._setup.seed)
        return OwnThread(writer, ring.arrays, self._dataset.stage)

    def _rows_ahead(self, position: int, readers: SampleReaders) -> Lookahead:
        """The samples of this rank; what lies at an address is brought here before they are due."""
        dataset = self._dataset

        def announce(shard: int) -> None:
            readers.stage(dataset.split.shards[shard])
            dataset.prefetch_index(shard)

        if not is_address(dataset.root):
            return Lookahead(self._rows(position), 0, lambda shard: None)
        return Lookahead(self._rows(position), self._config.store.lookahead, announce)

    def _rows(self, position: int) -> Iterator[Row]:
        """The samples of this rank, without end."""
        num = self._parts.micro_batches
        batch_global = self._world.size * num * self._batch_per_rank
        together = -(-_LOOKUP // (num * self._batch_per_rank))
        for begin in count(position, batch_global * together):
            starts = range(begin, begin + batch_global * together, batch_global)
            positions = np.concatenate([
                self._parts.positions(start, self._world, self._batch_per_rank, self._plan.num_streams)
                for start in starts
            ])  # fmt: skip
            samples = self._plan.at(positions)[:, 1:].tolist()
            for here, (shard, sample) in zip(positions.tolist(), samples, strict=True):
                yield Row(here, shard, sample)

    def _begin(self, first: int, rows: Lookahead, ring: SlotRing, readers: SampleReaders) -> _Filling:
        """Hand out the samples of the next batch, as tasks from number `first`."""
        slot, arrays = ring.take()
        due = list(islice(rows, self._batch_per_rank))
        refs = [self._dataset.ref(row.shard, row.sample) for row in due]
        tasks = [
            Task(first + index, slot, index, row.position, ref)
            for index, (row, ref) in enumerate(zip(due, refs, strict=True))
        ]
        readers.submit(tasks)
        return _Filling(first, arrays, [row.position for row in due], refs, len(due))

    def _await_first(self, filling: deque[_Filling], readers: SampleReaders, rows: Lookahead) -> None:
        """Take answers until the first batch has all of its own."""
        restarts = readers.restarts
        replies = readers.replies(wait=False)
        while True:
            for reply in replies:
                self._note(reply, filling)
            if not filling[0].left:
                break
            replies = readers.replies(wait=True)
        if readers.restarts > restarts:
            self._usage = replace(self._usage, restarts=self._usage.restarts + readers.restarts - restarts)
            rows.announce_again()

    def _note(self, reply: Reply, filling: deque[_Filling]) -> None:
        batch = filling[(reply.number - filling[0].first) // self._batch_per_rank]
        batch.left -= 1
        if reply.error is not None:
            batch.errors[reply.number - batch.first] = reply.error
        usage, cost = self._usage, reply.cost
        store_s, decode_s = usage.store_s + cost.store_s, usage.decode_s + cost.decode_s
        self._usage = replace(usage, samples=usage.samples + 1, store_s=store_s, decode_s=decode_s)

    def _finish(self, done: _Filling) -> Batch:
        arrays = done.arrays
        for row, error in sorted(done.errors.items()):
            if self._quarantine is None or not isinstance(error, SampleError):
                raise error
            ref, into = done.refs[row], crops.CropBuffers(arrays.image_BHW3[row], arrays.label_BHW[row])
            self._quarantine.note(done.positions[row], ref.shard.name, ref.entry.key, str(error))
            crop = quarantined_crop(into)
            arrays.colour_B34[row], arrays.inside_B4[row] = crop.colour_34, crop.inside
        deferred = self._config.colour == "device"
        return Batch(
            arrays.image_BHW3,
            arrays.label_BHW,
            tuple(done.positions),
            tuple(ref.entry.key for ref in done.refs),
            arrays.colour_B34 if deferred else None,
            arrays.inside_B4 if deferred else None,
            len(done.errors),
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
