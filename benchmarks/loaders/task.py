"""What a measured process is told."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataConfig

WORKERS = 2
"""Loader workers of every loader."""
SEED = 0

Batch = tuple[NDArray[Any], NDArray[Any]]
"""Images and labels as contiguous arrays in the consumer's process."""


@dataclass(frozen=True)
class Task:
    """One loader over one form of the pictures."""

    loader: str
    """Module of this package."""
    format: str
    """Codec of the images: striped, png or jpeg."""
    data: str
    """Folder of all forms of the pictures of one size."""
    height: int
    """Rows of a picture; scale 1 is its own size."""
    width: int
    crop_height: int
    crop_width: int
    batch: int
    """Samples a batch."""
    warm_up: int
    """Samples before the measured ones."""
    samples: int
    """Samples that are measured."""

    def at(self, data: Path) -> Task:
        """The same over the pictures of a folder."""
        return replace(self, data=str(data))

    def shortened(self) -> Task:
        """A smoke run of it."""
        return replace(self, warm_up=self.batch, samples=2 * self.batch)

    def lengthened(self, batches: int) -> Task:
        """The same over that many batches."""
        return replace(self, samples=batches * self.batch)

    @property
    def pictures(self) -> Path:
        """Folder of plain files: <key>.png, <key>.jpg and <key>.label.png."""
        return Path(self.data) / "plain"

    @property
    def packed(self) -> Path:
        """The pictures in this loader's own form."""
        return Path(self.data) / f"{self.loader}-{self.format}"

    @property
    def config(self) -> DataConfig:
        """Scale 0.5 to 2, flip, colours and the limit of 0.75 for a class: the field's policy."""
        return DataConfig(
            input_height=self.height, input_width=self.width,
            crop_height=self.crop_height, crop_width=self.crop_width,
            loader_workers=WORKERS, colour="loader",
        )  # fmt: skip


class Loader(Protocol):
    """What each module of this package offers."""

    def write(self, task: Task) -> None:
        """Packs the pictures into the task's folder."""

    def batches(self, task: Task) -> Generator[Batch, None, None]:
        """Batches without end."""

    def from_memory(self, task: Task) -> Iterator[None]:
        """Decodes and crops one sample a step, from bytes in memory, without end."""


def picture_files(pictures: Path, format: str) -> list[tuple[Path, Path]]:
    """Image and label file of each picture, in the order of their keys."""
    suffix = ".jpg" if format == "jpeg" else ".png"
    return [
        (label.with_name(label.name.removesuffix(".label.png") + suffix), label)
        for label in sorted(pictures.glob("*.label.png"))
    ]


def encoded(pictures: Path, format: str) -> list[tuple[str, bytes, bytes]]:
    """Key, image and label of each picture, in the order of their keys."""
    files = picture_files(pictures, format)
    return [(image.stem, image.read_bytes(), label.read_bytes()) for image, label in files]


def buffers(task: Task, rows: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Unwritten arrays for the crops of a batch."""
    shape = (rows, task.crop_height, task.crop_width)
    return np.empty((*shape, 3), np.uint8), np.empty(shape, np.uint8)
