"""Pixels of single samples: told where a sample lies, a reader hands out the regions that are asked for.

Every byte that is used is checked by a CRC. What is wrong with one sample (cut, flipped, undecodable,
another size than its index says, foreign ids) is a SampleError that names shard, key and offset; an
absent shard, or a store out of reach, is an error of the store and says nothing against the sample.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.data.decode import decode_image, decode_label, place
from pipeline.data.manifest import Member, SampleEntry, ShardEntry
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
        assert not decoded_cache

    def open(self, ref: SampleRef) -> SourceSample:
        """The sample, of which nothing is read yet."""
        return _EncodedSample(self, ref)

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

    def member(self, ref: SampleRef, member: Member) -> bytes:
        """The bytes of a member, checked; raises SampleError where they are not those of the index."""
        name, begin_s = ref.shard.name, time.perf_counter()
        try:
            data = self._store.read(name, member.offset, member.bytes)
        except ShardError as error:
            # An absent file or a store out of reach raises here once more, and is no fault of the sample.
            if self._store.size(name) >= member.offset + member.bytes:
                raise
            raise SampleError(f"{error} ({place(name, ref.entry, member)})") from error
        finally:
            self.store_s += time.perf_counter() - begin_s
        if _crc32_function()(data) != member.crc32:
            raise SampleError(
                f"{self.where(ref, member)}: {member.bytes} bytes are not those that "
                "were packed (crc32 differs); copy the shard again or pack again"
            )
        return data

    def refuse_foreign_ids(self, label_HW: NDArray[np.uint8], ref: SampleRef) -> None:
        """Raises SampleError for a train id that is neither a class nor 255."""
        # 255 wraps to 0, so one maximum finds every id that is neither a class nor ignored. A stray id
        # would otherwise surface as an assertion inside a CUDA kernel.
        if int((label_HW + np.uint8(1)).max()) > self._num_classes:
            ids = [i for i in np.unique(label_HW).tolist() if self._num_classes <= i < 255]
            raise SampleError(
                f"{self.where(ref, ref.entry.label)}: train ids {ids} are outside the "
                f"manifest's {self._num_classes} classes; pack again"
            )

    def where(self, ref: SampleRef, member: Member) -> str:
        """How an error names a member: shard, key, kind and offset."""
        return place(self.shard(ref), ref.entry, member)

    def shard(self, ref: SampleRef) -> str:
        """Where the sample's shard lies, root and name."""
        return f"{self._store.root}/{ref.shard.name}"


class _EncodedSample:
    """A sample of a shard, whose pictures are decoded when a region of them is asked for."""

    def __init__(self, reader: SampleReader, ref: SampleRef) -> None:
        self._reader, self._ref = reader, ref
        self.key, self.height, self.width = ref.entry.key, ref.entry.height, ref.entry.width

    def image_region(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        return self._image[rows, columns]

    def label_region(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        return self._label[rows, columns]

    @cached_property
    def _image(self) -> NDArray[np.uint8]:
        entry = self._ref.entry
        data = self._reader.member(self._ref, entry.image)
        return _sound(decode_image, data, entry, self._reader.shard(self._ref))

    @cached_property
    def _label(self) -> NDArray[np.uint8]:
        entry = self._ref.entry
        data = self._reader.member(self._ref, entry.label)
        label_HW = _sound(decode_label, data, entry, self._reader.shard(self._ref))
        self._reader.refuse_foreign_ids(label_HW, self._ref)
        return label_HW


def _whole(source: SourceSample) -> Sample:
    rows, columns = slice(0, source.height), slice(0, source.width)
    return Sample(source.key, source.image_region(rows, columns), source.label_region(rows, columns))


def _sound(
    decode: Callable[[bytes, SampleEntry, str], NDArray[np.uint8]],
    data: bytes,
    entry: SampleEntry,
    shard: str,
) -> NDArray[np.uint8]:
    try:
        return decode(data, entry, shard)
    except ShardError as error:
        raise SampleError(str(error)) from error


@cache
def _crc32_function() -> Callable[[bytes], int]:
    """The crc32 of isal where that is installed (it is several times faster), else of zlib."""
    try:
        from isal import isal_zlib  # noqa: PLC0415 - optional, and not part of the core's imports
    except ImportError:
        return zlib.crc32
    return cast("Callable[[bytes], int]", isal_zlib.crc32)
