"""Batches for a rank: training's endless order from a position, and evaluation's slice of a split.

A batch is a pure function of (data set, config, seed, world, batch size, position): reading with any
number of loader workers, or resuming anywhere, gives the same pixels. Workers are threads, as OpenCV,
zlib and pread work without the interpreter lock; results are handed out in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataConfig
from pipeline.data import augment as crops
from pipeline.data.dataset import ShardDataset
from pipeline.data.plan import EpochPlan, rank_positions
from pipeline.data.quarantine import Quarantine, quarantined_crop, read_crop
from pipeline.errors import CheckpointError, SampleError
from pipeline.world import World

_LOOKUP = 256
"""Positions looked up in the plan at a time: enough for the look-up to cost under 1 µs a sample."""

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Batch:
    """A rank's share of a micro-batch, in the order of its positions."""

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
class EvalSample:
    """A sample to evaluate: the image at the network's input size, the label at its own full size."""

    image_HW3: NDArray[np.uint8]
    label_HW: NDArray[np.uint8]
    key: str
    index: int


@dataclass(frozen=True)
class _Crop:
    """A finished training crop."""

    image_HW3: NDArray[np.uint8]
    label_HW: NDArray[np.uint8]
    position: int
    key: str
    shard: str
    colour_34: NDArray[np.float32]
    inside: tuple[int, int, int, int]
    damage: str = ""


class TrainLoader:
    """One rank's training batches."""

    def __init__(
        self, dataset: ShardDataset, config: DataConfig, seed: int, world: World, batch_per_rank: int,
        *, quarantine: Quarantine | None = None, defer_colour: bool = False,
    ) -> None:  # fmt: skip
        self._quarantine, self._defer_colour = quarantine, defer_colour
        assert batch_per_rank >= 1, batch_per_rank
        self._dataset, self._config, self._seed = dataset, config, seed
        self._world, self._batch_per_rank = world, batch_per_rank
        self._plan = EpochPlan(dataset.split.counts, seed, config.streams, config.block)
        _leave_threads_to_the_loader()

    def batches(self, position: int) -> Generator[Batch, None, None]:
        """Endless batches from a position: micro-batch m is this rank's part of the B·W at position + m·B·W.

        Closing the generator ends its threads. Raises ShardError where a sample cannot be read.
        """
        ahead = self._config.prefetch * self._config.loader_workers * self._batch_per_rank
        read = in_order(self._read, self._rows(position), self._config.loader_workers, ahead)
        try:
            while True:
                crop_list = list(islice(read, self._batch_per_rank))
                for crop in crop_list:
                    if crop.damage and self._quarantine:
                        self._quarantine.note(crop.position, crop.shard, crop.key, crop.damage)
                yield _collate(crop_list, self._defer_colour)
        finally:
            read.close()

    def order(self) -> dict[str, Any]:
        """What the samples and pixels of a position depend on, as JSON values, for checkpoints."""
        return {
            "manifest_id": self._dataset.manifest.id,
            "split": self._dataset.split.name,
            "plan": self._plan.constants(),
            "augment": crops.constants(self._config),
        }

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

    def _rows(self, position: int) -> Iterator[tuple[int, int, int]]:
        """(position, shard, sample) of this rank's samples, without end."""
        batch_global = self._world.size * self._batch_per_rank
        together = -(-_LOOKUP // self._batch_per_rank)
        for begin in count(position, batch_global * together):
            starts = range(begin, begin + batch_global * together, batch_global)
            share = [
                rank_positions(start, self._world, self._batch_per_rank, self._plan.num_streams)
                for start in starts
            ]
            positions = np.concatenate(share)
            for here, (_, shard, sample) in zip(
                positions.tolist(), self._plan.at(positions).tolist(), strict=True
            ):
                yield here, shard, sample

    def _read(self, row: tuple[int, int, int]) -> _Crop:
        position, shard, sample = row
        ref, damage = self._dataset.ref(shard, sample), ""
        size = self._config.crop_height, self._config.crop_width
        into = crops.CropBuffers(np.empty((*size, 3), np.uint8), np.empty(size, np.uint8))
        try:
            crop = read_crop(self._dataset.reader(), ref, self._config, self._seed, position, into)
        except SampleError as error:
            if self._quarantine is None:
                raise
            crop, damage = quarantined_crop(into), str(error)
        if not self._defer_colour:
            crops.colour_in_place(into.image_hw3, crop.colour_34, crop.inside)
        return _Crop(
            into.image_hw3, into.label_hw, position, ref.entry.key, ref.shard.name,
            crop.colour_34, crop.inside, damage,
        )  # fmt: skip


class EvalLoader:
    """A rank's contiguous slice of a split, once: slices are uneven, never padded or repeated.

    The lengths of all ranks' loaders sum to len(dataset); a rank may have none.
    """

    def __init__(
        self, dataset: ShardDataset, input_height: int, input_width: int, world: World, workers: int = 0
    ) -> None:
        self._dataset, self._workers = dataset, workers
        self._height, self._width = input_height, input_width
        self._indexes = range(
            len(dataset) * world.rank // world.size, len(dataset) * (world.rank + 1) // world.size
        )
        _leave_threads_to_the_loader()

    def __len__(self) -> int:
        return len(self._indexes)

    def __iter__(self) -> Generator[EvalSample, None, None]:
        # Whole labels are large, so two samples ahead a worker are enough.
        return in_order(self._read, self._indexes, self._workers, 2 * self._workers)

    def _read(self, index: int) -> EvalSample:
        sample = self._dataset.sample_at(index)
        image = resize_input(sample.image_HW3, self._height, self._width)
        return EvalSample(image, sample.label_HW, sample.key, index)


def resize_input(image_HW3: NDArray[np.uint8], input_height: int, input_width: int) -> NDArray[np.uint8]:
    """A whole picture at the network's input size: the one way for evaluation, prediction and serving."""
    return crops.resize_image(image_HW3, input_height, input_width)


def in_order(
    function: Callable[[_T], _R], items: Iterable[_T], workers: int, ahead: int
) -> Generator[_R, None, None]:
    """`function` of each item, in their order, by `workers` threads at most `ahead` items ahead.

    With no workers it is the calling thread that works. The first error is raised at its item's turn.
    """
    if workers == 0:
        yield from map(function, items)
        return
    source = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="loader")
    try:
        waiting: deque[Future[_R]] = deque(pool.submit(function, item) for item in islice(source, ahead))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(source, 1))
            yield done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _collate(samples: list[_Crop], defer_colour: bool) -> Batch:
    return Batch(
        np.stack([crop.image_HW3 for crop in samples]),
        np.stack([crop.label_HW for crop in samples]),
        tuple(crop.position for crop in samples),
        tuple(crop.key for crop in samples),
        np.stack([crop.colour_34 for crop in samples]) if defer_colour else None,
        np.array([crop.inside for crop in samples], np.int64) if defer_colour else None,
        sum(bool(crop.damage) for crop in samples),
    )


def _leave_threads_to_the_loader() -> None:
    """OpenCV's own pool would compete with the loader's workers and the training threads for the cores."""
    cv2.setNumThreads(0)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
