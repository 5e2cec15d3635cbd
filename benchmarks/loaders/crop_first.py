"""The work on one sample that webdataset, streaming, litdata and Ray Data are given: the same for all.

The picture is decoded whole by OpenCV, then this pipeline's own augmentation takes its crop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, cycle

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import default_collate

from loaders.task import SEED, Batch, Task, buffers, encoded
from pipeline.data.augment import CropBuffers, augment, colour_in_place


class WholePicture:
    """A decoded sample."""

    def __init__(self, image: bytes, label: bytes) -> None:
        self.key = ""
        self._image_HW3 = decoded(image, cv2.IMREAD_COLOR_RGB)
        self._label_HW = decoded(label, cv2.IMREAD_UNCHANGED)
        self.height, self.width = self._label_HW.shape

    def image_region(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """A part of the image."""
        return self._image_HW3[rows, columns]

    def label_region(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """The same part of the label."""
        return self._label_HW[rows, columns]


class CropFirst:
    """Encoded samples to crops; each gets the next random numbers of this process."""

    def __init__(self, task: Task) -> None:
        self._task, self._position = task, count()
        cv2.setNumThreads(0)

    def sample(self, image: bytes, label: bytes) -> Batch:
        """One crop in fresh arrays."""
        image_hw3, label_hw = (array[0] for array in buffers(self._task, 1))
        self.into(image, label, CropBuffers(image_hw3, label_hw))
        return image_hw3, label_hw

    def collate(self, samples: Sequence[tuple[bytes, bytes]]) -> tuple[torch.Tensor, torch.Tensor]:
        """All crops as two tensors, by torch's own collation: a worker's are in shared memory."""
        images, labels = default_collate([self.sample(image, label) for image, label in samples])
        return images, labels

    def into(self, image: bytes, label: bytes, target: CropBuffers) -> None:
        """One crop in the given arrays."""
        source = WholePicture(image, label)
        crop = augment(source, self._task.config, SEED, next(self._position), target)
        colour_in_place(target.image_hw3, crop.colour_34, crop.inside)


def decoded(data: bytes, flags: int) -> NDArray[np.uint8]:
    """The whole picture in the bytes of a file."""
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), flags), np.uint8)


def from_memory(task: Task) -> Iterator[None]:
    """One sample a step into arrays that are used again."""
    crop_first = CropFirst(task)
    images, labels = buffers(task, 1)
    target = CropBuffers(images[0], labels[0])
    for _, image, label in cycle(encoded(task.pictures, task.format)):
        crop_first.into(image, label, target)
        yield
