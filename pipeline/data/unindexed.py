"""Training batches from WebDataset shards that have no index: the same batches, with fewer promises.

The shards are streamed by `webdataset.WebDataset` itself; only the opening of addresses (by our store:
no pipe:, no curl, no password) and the decoding (by ours: nothing is unpickled) are replaced. What an
index makes possible does not hold here, and `REPLACED_PROMISES` says so in the log.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import cv2
import numpy as np

from pipeline.config import DataConfig
from pipeline.data import augment as crops
from pipeline.data.loader import Batch, LoaderUsage
from pipeline.data.quarantine import Quarantine, quarantined_crop
from pipeline.data.slots import SlotArrays, SlotLayout
from pipeline.data.store import open_store
from pipeline.data.unindexed_stream import (
    DecodedSample,
    MemberFilter,
    StreamedSample,
    shards_of,
    stream_samples,
)
from pipeline.errors import ConfigError, DatasetError, SampleError, ShardError
from pipeline.world import World

_LOG = logging.getLogger(__name__)
REPLACED_PROMISES = (
    "unindexed shards: not every sample comes exactly once an epoch; a resumed run starts the stream anew "
    "with another shuffle; the order depends on the number of ranks; what a damaged tar loses is noticed "
    "only where the tar reader stumbles (python jobs/shards.py index gives all of that back)"
)


class UnindexedLoader:
    """One rank's training batches from the shards at `config.unindexed_train`, without end.

    Damaged pictures go to the quarantine; a tar that cannot be read on is an error. Raises ConfigError
    where there are fewer shards than ranks.
    """

    def __init__(
        self, num_classes: int, config: DataConfig, seed: int, world: World, batch_per_rank: int,
        *, quarantine: Quarantine,
    ) -> None:  # fmt: skip
        self._num_classes, self._config, self._seed, self._world = num_classes, config, seed, world
        self._batch_per_rank, self._quarantine = batch_per_rank, quarantine
        self._root, self._shards = shards_of(config.unindexed_train)
        if len(self._shards) < world.size:
            raise ConfigError(
                f"data.unindexed_train names {len(self._shards)} shards for {world.size} ranks; each rank "
                "reads shards of its own, so take fewer ranks, or index the shards with jobs/shards.py index"
            )
        self._layout = SlotLayout(batch_per_rank, config.crop_height, config.crop_width)
        self._usage = LoaderUsage()
        self._members = MemberFilter()
        if world.is_main:
            _LOG.warning("[data]  %s", REPLACED_PROMISES)
        cv2.setNumThreads(0)  # its own pool would compete with the training threads for the cores

    def batches(self, position: int) -> Generator[Batch, None, None]:
        """Endless batches; positions count on from `position`, which also chooses the shuffle.

        Closing the generator ends its threads. Raises ShardError where a tar cannot be read on.
        """
        workers = self._config.loader_workers
        stream = self._samples(position)
        pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="loader")
        filling: deque[tuple[_Filling, list[Future[_Row]]]] = deque()
        ahead = max(1, self._config.prefetch * workers)
        try:
            for number in count():
                first = position + number * self._world.size * self._batch_per_rank
                batch = _Filling(first + self._world.rank * self._batch_per_rank, self._new_arrays(), [])
                batch.samples.extend(islice(stream, self._batch_per_rank))
                filling.append(
                    (batch, [pool.submit(self._write, batch, row) for row in range(self._batch_per_rank)])
                )
                if len(filling) >= ahead:
                    yield self._finish(*filling.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            stream.close()

    def usage(self) -> LoaderUsage:
        """What reading has cost so far."""
        return self._usage

    def order(self) -> dict[str, Any]:
        """What tells these batches from others, as JSON values, for checkpoints; no promise of an order."""
        return {"unindexed": self._config.unindexed_train, "augment": crops.constants(self._config)}

    def _samples(self, position: int) -> Generator[StreamedSample, None, None]:
        """The samples of the rank, pass after pass over its shards."""
        store = open_store(self._root, self._config.store)
        try:
            for number in count():
                draw = random.Random(f"{self._seed} {position} {number}")  # noqa: S311 - a shuffle, no secret
                shards = list(self._shards)
                draw.shuffle(shards)
                own = shards[self._world.rank :: self._world.size]
                found = False
                for sample in self._timed(stream_samples(store, own, draw, self._members)):
                    found = True
                    yield sample
                if not found:
                    raise ShardError(f"{self._root}: no samples in {', '.join(own[:3])} …; check the shards")
        finally:
            store.close()

    def _timed(self, samples: Iterator[StreamedSample]) -> Iterator[StreamedSample]:
        while True:
            begin_s = time.perf_counter()
            sample = next(samples, None)
            self._usage = replace(self._usage, store_s=self._usage.store_s + time.perf_counter() - begin_s)
            if sample is None:
                return
            yield sample

    def _new_arrays(self) -> SlotArrays:
        return self._layout.arrays(np.empty(self._layout.num_bytes, np.uint8))

    def _write(self, batch: _Filling, row: int) -> _Row:
        """Fills a row of the batch, or says why it cannot be."""
        begin_s = time.perf_counter()
        arrays, position = batch.arrays, batch.position + row
        into = crops.CropBuffers(arrays.image_BHW3[row], arrays.label_BHW[row])
        problem = ""
        try:
            source = DecodedSample(batch.samples[row], self._num_classes)
            crop = crops.augment(source, self._config, self._seed, position, into)
            if self._config.colour != "device":
                crops.colour_in_place(into.image_hw3, crop.colour_34, crop.inside)
        except (DatasetError, SampleError) as error:
            problem, crop = str(error), quarantined_crop(into)
        arrays.colour_B34[row], arrays.inside_B4[row] = crop.colour_34, crop.inside
        return _Row(problem, time.perf_counter() - begin_s)

    def _finish(self, batch: _Filling, rows: list[Future[_Row]]) -> Batch:
        done = [row.result() for row in rows]
        positions = range(batch.position, batch.position + len(done))
        for position, sample, row in zip(positions, batch.samples, done, strict=True):
            if row.problem:
                self._quarantine.note(position, sample.shard, sample.key, row.problem)
        self._usage = replace(
            self._usage,
            samples=self._usage.samples + len(done),
            decode_s=self._usage.decode_s + sum(row.seconds for row in done),
        )
        arrays, deferred = batch.arrays, self._config.colour == "device"
        return Batch(
            arrays.image_BHW3,
            arrays.label_BHW,
            tuple(positions),
            tuple(sample.key for sample in batch.samples),
            arrays.colour_B34 if deferred else None,
            arrays.inside_B4 if deferred else None,
            sum(bool(row.problem) for row in done),
        )


@dataclass
class _Filling:
    """A batch that is being filled; `position` is that of its first row."""

    position: int
    arrays: SlotArrays
    samples: list[StreamedSample]


@dataclass(frozen=True)
class _Row:
    problem: str
    seconds: float
