"""A torch DataLoader over a folder of files, in the order of work of the common frameworks.

As in MMSegmentation: read and decode the whole picture, resize the whole picture, take a crop that no
class fills, flip, distort the colours in float32 (hue in HSV), normalise, pad, transpose to a tensor.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, RandomSampler

from loaders.crop_first import decoded
from loaders.task import SEED, WORKERS, Batch, Task, encoded, picture_files

_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_STD = np.array([58.395, 57.12, 57.375], np.float32)
_IGNORE = 255
_EPOCH = 2**20


class Folder(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Float32 images (3, h, w) and int64 labels (h, w)."""

    def __init__(self, task: Task, files: list[tuple[Path, Path]]) -> None:
        self._task, self._files = task, files
        self._rng = np.random.default_rng(SEED)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = self._files[index]
        return self.crop(image.read_bytes(), label.read_bytes())

    def crop(self, image: bytes, label: bytes) -> tuple[torch.Tensor, torch.Tensor]:
        """A training sample from the bytes of its two files."""
        image_HW3: NDArray[Any] = decoded(image, cv2.IMREAD_COLOR)
        label_HW: NDArray[Any] = decoded(label, cv2.IMREAD_UNCHANGED)
        policy = self._task.config.augment
        scale = self._rng.uniform(policy.scale_min, policy.scale_max)
        size = (round(self._task.width * scale), round(self._task.height * scale))
        image_HW3 = cv2.resize(image_HW3, size, interpolation=cv2.INTER_LINEAR)
        label_HW = cv2.resize(label_HW, size, interpolation=cv2.INTER_NEAREST)
        window = self._window(np.asarray(label_HW), policy.max_class_share)
        image_hw3: NDArray[Any] = image_HW3[window]
        label_hw: NDArray[Any] = label_HW[window]
        if self._rng.random() < 0.5:
            image_hw3, label_hw = cv2.flip(image_hw3, 1), cv2.flip(label_hw, 1)
        image_hw3 = self._distort(np.asarray(image_hw3))
        image_hw3 = cv2.cvtColor(image_hw3, cv2.COLOR_BGR2RGB).astype(np.float32)
        image_hw3 = (image_hw3 - _MEAN) / _STD
        return self._tensors(np.asarray(image_hw3), np.asarray(label_hw))

    def _window(self, label_HW: NDArray[Any], max_class_share: float) -> tuple[slice, slice]:
        """The crop: drawn again, up to ten times, while one class has too large a share of it."""
        height, width = self._task.crop_height, self._task.crop_width
        for _ in range(10):
            top = self._rng.integers(max(label_HW.shape[0] - height, 0) + 1)
            left = self._rng.integers(max(label_HW.shape[1] - width, 0) + 1)
            window = (slice(top, top + height), slice(left, left + width))
            ids, count = np.unique(label_HW[window], return_counts=True)
            count = count[ids != _IGNORE]
            if len(count) > 1 and count.max() / count.sum() < max_class_share:
                break
        return window

    def _distort(self, image_hw3: NDArray[Any]) -> NDArray[Any]:
        """Brightness, contrast before or after, saturation and hue: each half of the time."""
        early = self._rng.random() < 0.5
        image_hw3 = self._linear(image_hw3, beta=self._rng.uniform(-32, 32))
        if early:
            image_hw3 = self._linear(image_hw3, alpha=self._rng.uniform(0.5, 1.5))
        if self._rng.random() < 0.5:
            hsv_hw3 = cv2.cvtColor(image_hw3, cv2.COLOR_BGR2HSV)
            hsv_hw3[..., 1] = _scaled(hsv_hw3[..., 1], self._rng.uniform(0.5, 1.5), 0.0)
            image_hw3 = np.asarray(cv2.cvtColor(hsv_hw3, cv2.COLOR_HSV2BGR))
        if self._rng.random() < 0.5:
            hsv_hw3 = cv2.cvtColor(image_hw3, cv2.COLOR_BGR2HSV)
            hue = hsv_hw3[..., 0].astype(int) + int(self._rng.integers(-18, 18))
            hsv_hw3[..., 0] = hue % 180
            image_hw3 = np.asarray(cv2.cvtColor(hsv_hw3, cv2.COLOR_HSV2BGR))
        return image_hw3 if early else self._linear(image_hw3, alpha=self._rng.uniform(0.5, 1.5))

    def _linear(self, image_hw3: NDArray[Any], alpha: float = 1.0, beta: float = 0.0) -> NDArray[Any]:
        return _scaled(image_hw3, alpha, beta) if self._rng.random() < 0.5 else image_hw3

    def _tensors(self, image_hw3: NDArray[Any], label_hw: NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        down = self._task.crop_height - label_hw.shape[0]
        right = self._task.crop_width - label_hw.shape[1]
        if down or right:
            image_hw3 = np.asarray(cv2.copyMakeBorder(image_hw3, 0, down, 0, right, cv2.BORDER_CONSTANT))
            label_hw = np.asarray(
                cv2.copyMakeBorder(label_hw, 0, down, 0, right, cv2.BORDER_CONSTANT, value=_IGNORE)
            )
        image_3hw = np.ascontiguousarray(image_hw3.transpose(2, 0, 1))
        return torch.from_numpy(image_3hw), torch.from_numpy(label_hw.astype(np.int64))


def write(task: Task) -> None:
    """Nothing: the plain files are what it reads."""
    task.packed.mkdir()


def batches(task: Task) -> Generator[Batch, None, None]:
    """Float32 batches."""
    folder = Folder(task, picture_files(task.pictures, task.format))
    sampler = RandomSampler(folder, replacement=True, num_samples=_EPOCH)
    loader = DataLoader(folder, batch_size=task.batch, sampler=sampler, num_workers=WORKERS)
    for images, labels in loader:
        yield images.numpy(), labels.numpy()


def from_memory(task: Task) -> Iterator[None]:
    """One sample a step."""
    folder = Folder(task, [])
    for _, image, label in cycle(encoded(task.pictures, task.format)):
        folder.crop(image, label)
        yield


def _scaled(values: NDArray[Any], alpha: float, beta: float) -> NDArray[Any]:
    changed = values.astype(np.float32) * alpha + beta
    return np.asarray(np.clip(changed, 0, 255), np.uint8)
