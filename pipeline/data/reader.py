"""Pixels of single samples: told where a sample lies, a reader hands out the regions that are asked for.

Every byte of a shard that is used is checked by a CRC. What is wrong with one sample (cut, flipped,
undecodable, another size than its index says, foreign ids) is a SampleError that names shard, key and
offset; an absent shard, or a store out of reach, is an error of the store and says nothing against the
sample.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.data.decode import place
from pipeline.data.decoded_cache import DecodedCache
from pipeline.data.encoded_picture import EncodedPicture, ReadMember
from pipeline.data.index import Member, SampleEntry
from pipeline.data.labels import foreign_train_ids
from pipeline.data.shard_table import ShardEntry
from pipeline.data.store import Store
from pipeline.errors import SampleError, ShardError


@dataclass(frozen=True)
class Sample:
    """A decoded sample: RGB uint8 image, uint8 train ids of the same height and width."""

    key: str
    image_HW3: NDArray[np.uint8]
    label_HW: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SampleRef:
    """All that a reader must be told of one sample."""

    shard: ShardEntry
    entry: SampleEntry


class SourceSample(Protocol):
    """The pixels of one sample, decoded when they are asked for. Raises SampleError."""

    @property
    def key(self) -> str:
        """Its name in the split."""

    @property
    def height(self) -> int:
        """Rows of the picture."""

    @property
    def width(self) -> int:
        """Columns of the picture."""

    def image_region(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """RGB (h, w, 3). To be read only: it may be a view of what serves other regions too."""

    def label_region(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """Train ids (h, w), each one of the classes or 255. To be read only."""


class SampleReader:
    """Reads samples of one store, for one thread."""

    def __init__(self, store: Store, num_classes: int, decoded_cache: str = "") -> None:
        self.store_s = 0.0
        """Seconds spent so far on reading bytes; decoding is what the caller measures beside it."""
        self._store, self._num_classes = store, num_classes
        self._cache = DecodedCache(decoded_cache, store) if decoded_cache else None

    def open(self, ref: SampleRef) -> SourceSample:
        """The sample, of which nothing is read yet; with a decoded cache, all of what is not in there."""
        if self._cache is None:
            return self._encoded(ref)
        pixels = self._cache.find(ref.shard, ref.entry)
        if pixels is None:
            sample = _whole(self._encoded(ref))
            pixels = sample.image_HW3, sample.label_HW
            self._cache.keep(ref.shard, ref.entry, pixels)
        return _DecodedSample(ref.entry, *pixels, self._num_classes, self._shard(ref))

    def reopen(self, ref: SampleRef) -> SourceSample:
        """The sample that proved bad, to be read from fresh bytes: it may have been a copy that is bad."""
        self._store.drop(ref.shard.name)
        return self.open(ref)

    def read(self, ref: SampleRef) -> Sample:
        """The whole pictures; a sample that proves bad is read once more before SampleError is raised."""
        try:
            return _whole(self.open(ref))
        except SampleError:
            return _whole(self.reopen(ref))

    def _shard(self, ref: SampleRef) -> str:
        return f"{self._store.root}/{ref.shard.name}"

    def _encoded(self, ref: SampleRef) -> SourceSample:
        def read(member: Member, offset: int, num_bytes: int) -> bytes:
            return self._read(ref, member, offset, num_bytes)

        return _EncodedSample(ref.entry, read, self._num_classes, self._shard(ref))

    def _read(self, ref: SampleRef, member: Member, offset: int, num_bytes: int) -> bytes:
        name, begin_s = ref.shard.name, time.perf_counter()
        try:
            return self._store.read(name, member.offset + offset, num_bytes)
        except ShardError as error:
            # An absent file or a store out of reach raises here once more, and is no fault of the sample.
            if self._store.size(name) >= member.offset + offset + num_bytes:
                raise
            raise SampleError(f"{error} ({place(name, ref.entry, member)})") from error
        finally:
            self.store_s += time.perf_counter() - begin_s


class _EncodedSample:
    """A sample of a shard, whose pictures are read and decoded when a region of them is asked for."""

    def __init__(
        self, entry: SampleEntry, read: Callable[[Member, int, int], bytes], num_classes: int, shard: str
    ) -> None:
        self.key, self.height, self.width = entry.key, entry.height, entry.width
        self._num_classes, self._where = num_classes, place(shard, entry, entry.label)
        self._image = EncodedPicture(partial(read, entry.image), entry, entry.image, shard)
        self._label = EncodedPicture(
            _at_once(partial(read, entry.label), entry.label), entry, entry.label, shard
        )

    def image_region(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        return self._image.region(rows, columns)

    def label_region(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        label_hw = self._label.region(rows, columns)
        _refuse_foreign_ids(label_hw, self._num_classes, self._where)
        return label_hw


class _DecodedSample:
    """A sample whose pixels are there; they may have been decoded for a manifest with more classes."""

    def __init__(
        self, entry: SampleEntry, image_HW3: NDArray[np.uint8], label_HW: NDArray[np.uint8],
        num_classes: int, shard: str,
    ) -> None:  # fmt: skip
        self._image_HW3, self._label_HW, self._num_classes = image_HW3, label_HW, num_classes
        self._where = place(shard, entry, entry.label)
        self.key, self.height, self.width = entry.key, entry.height, entry.width

    def image_region(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        return self._image_HW3[rows, columns]

    def label_region(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        label_hw = self._label_HW[rows, columns]
        _refuse_foreign_ids(label_hw, self._num_classes, self._where)
        return label_hw


def _at_once(read: ReadMember, member: Member) -> ReadMember:
    """The same, by one read at the first call: labels are small, and several regions may be asked for."""
    # Not a property of the sample: pictures that lie in a cycle of references are freed late.
    whole = cache(lambda: read(0, member.bytes))
    return lambda offset, num_bytes: whole()[offset : offset + num_bytes]


def _refuse_foreign_ids(label_hw: NDArray[np.uint8], num_classes: int, where: str) -> None:
    """Raises SampleError for a train id that is neither a class nor 255."""
    if ids := foreign_train_ids(label_hw, num_classes):  # inside a CUDA kernel they would be an assertion
        raise SampleError(
            f"{where}: train ids {ids} are outside the manifest's {num_classes} classes; pack again"
        )


def _whole(source: SourceSample) -> Sample:
    rows, columns = slice(0, source.height), slice(0, source.width)
    return Sample(source.key, source.image_region(rows, columns), source.label_region(rows, columns))
