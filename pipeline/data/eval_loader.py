"""Evaluation's samples: a rank's slice of a split, each whole and once.

Workers are threads, as OpenCV, zlib and pread work without the interpreter lock; an evaluation is
short, and whole labels are too large to hand from process to process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.augment import resize_image
from pipeline.data.dataset import ShardDataset
from pipeline.world import World

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class EvalSample:
    """A sample to evaluate: the image at the network's input size, the label at its own full size."""

    image_HW3: NDArray[np.uint8]
    label_HW: NDArray[np.uint8]
    key: str
    index: int


class EvalLoader:
    """A rank's contiguous slice of a split, once: slices are uneven, never padded or repeated.

    The lengths of all ranks' loaders sum to len(dataset); a rank may have none. No slice begins inside a
    `group` of so many samples, counted from the first: which go through a network together then depends on
    no number of ranks.
    """

    def __init__(
        self, dataset: ShardDataset, input_height: int, input_width: int, world: World, workers: int = 0,
        *, group: int = 1,
    ) -> None:  # fmt: skip
        self._dataset, self._workers = dataset, workers
        self._height, self._width = input_height, input_width
        num_groups = -(-len(dataset) // group)
        begin, end = (group * (num_groups * rank // world.size) for rank in (world.rank, world.rank + 1))
        self._indexes = range(min(begin, len(dataset)), min(end, len(dataset)))
        cv2.setNumThreads(0)  # its own pool would compete with these threads for the cores

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
    return resize_image(image_HW3, input_height, input_width)


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
