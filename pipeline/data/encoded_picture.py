"""Pixels of one stored picture, by region: as few bytes read, checked and decoded as its codec allows.

A striped PNG is read and decoded by strips, and the CRC of every chunk used is checked. Any other
picture, and one whose strips surprise, is read whole and checked against the crc32 of the index; a
JPEG is then decoded by regions where the system can, and the rest once, kept for further regions. All
these ways give the same pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pipeline.data import jpeg_crop
from pipeline.data.decode import decode_gray, decode_rgb, place, refuse_other_header
from pipeline.data.index import Member, SampleEntry
from pipeline.data.striped_png import HEAD_BYTES, Layout, fast_zlib, read_layout
from pipeline.errors import DatasetError, SampleError

ReadMember = Callable[[int, int], bytes]
"""(offset in the member, num_bytes) → exactly these bytes; what it raises passes through."""


class EncodedPicture:
    """The image or the label of a sample; nothing is read before the first region is asked for.

    `member` is one of the entry's two, `shard` the name that errors give to the place. An image is RGB
    (h, w, 3), a label (h, w), both uint8.
    """

    def __init__(self, read: ReadMember, entry: SampleEntry, member: Member, shard: str) -> None:
        self._read = read
        self._entry = entry
        self._member = member
        self._where = place(shard, entry, member)

    def region(self, rows: slice, columns: slice) -> NDArray[np.uint8]:
        """The pixels of these rows and columns: to be read only, as it may be a view of kept ones.

        The slices have a start and a stop, are inside the picture and not empty. Raises SampleError
        naming shard, key and offset where bytes are damaged, undecodable or not what the index says.
        """
        try:
            if self._member.codec == "png":
                part = self._strips_region(rows, columns)
            else:
                part = self._jpeg_region(rows, columns)
            return self._pixels[rows, columns] if part is None else part
        except DatasetError as error:
            raise SampleError(str(error)) from error

    def _strips_region(self, rows: slice, columns: slice) -> NDArray[np.uint8] | None:
        try:
            if "_pixels" in self.__dict__ or self._layout is None:
                return None
            span = self._layout.span(rows)
            return self._layout.decode(self._read(span.start, span.stop - span.start), rows, columns)
        except DatasetError as error:
            raise SampleError(f"{self._where}: {error}") from error

    def _jpeg_region(self, rows: slice, columns: slice) -> NDArray[np.uint8] | None:
        is_part = (
            rows.stop - rows.start < self._entry.height or columns.stop - columns.start < self._entry.width
        )
        if "_pixels" in self.__dict__ or not is_part:
            return None
        return jpeg_crop.decode_region(self._data, rows, columns)

    @cached_property
    def _layout(self) -> Layout | None:
        """The layout of strips, where it fits the index and the kind of picture that is wanted."""
        head = self._read(0, min(HEAD_BYTES, self._member.bytes))
        layout = read_layout(head)
        channels = 3 if self._member is self._entry.image else 1
        if layout is None or (layout.num_bytes, layout.channels) != (self._member.bytes, channels):
            return None
        refuse_other_header(head, self._entry, self._member, self._where)
        return layout

    @cached_property
    def _data(self) -> bytes:
        """All bytes, checked by the crc32 of the index, of a picture of the size and codec that it says."""
        data = self._read(0, self._member.bytes)
        if fast_zlib().crc32(data) != self._member.crc32:
            raise SampleError(
                f"{self._where}: {self._member.bytes} bytes are not those that were packed (crc32 differs); "
                "copy the shard again or pack again"
            )
        refuse_other_header(data, self._entry, self._member, self._where)
        return data

    @cached_property
    def _pixels(self) -> NDArray[np.uint8]:
        """The whole picture, by OpenCV."""
        decode = decode_rgb if self._member is self._entry.image else decode_gray
        return decode(self._data, self._where)
