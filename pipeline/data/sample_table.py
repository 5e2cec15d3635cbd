"""The samples of a shard as columns: about a hundred bytes each, an entry when it is asked for.

As objects they would take five times that, in every rank, and the collector's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np

from pipeline.data.index import CODECS, Member, SampleEntry


class SampleTable(Sequence[SampleEntry]):
    """The entries of an index in order, unchangeable."""

    def __init__(self, entries: Sequence[SampleEntry]) -> None:
        keys = [entry.key.encode() for entry in entries]
        # One text and where each key ends: one long key must not widen all the others.
        self._keys = b"".join(keys)
        self._key_ends = np.cumsum(np.fromiter(map(len, keys), np.int64, len(keys)))
        self._numbers = np.array([_numbers(entry) for entry in entries], np.int64)

    def __len__(self) -> int:
        return len(self._key_ends)

    @overload
    def __getitem__(self, index: int) -> SampleEntry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[SampleEntry, ...]: ...

    def __getitem__(self, index: int | slice) -> SampleEntry | tuple[SampleEntry, ...]:
        if isinstance(index, slice):
            return tuple(self._entry(at) for at in range(len(self))[index])
        return self._entry(range(len(self))[index])  # IndexError beyond the ends

    def _entry(self, at: int) -> SampleEntry:
        begin = int(self._key_ends[at - 1]) if at else 0
        key = self._keys[begin : int(self._key_ends[at])].decode()
        height, width, *members = self._numbers[at].tolist()
        return SampleEntry(key, height, width, _member(*members[:4]), _member(*members[4:]))


def _numbers(entry: SampleEntry) -> tuple[int, ...]:
    members = (
        number
        for member in (entry.image, entry.label)
        for number in (CODECS.index(member.codec), member.offset, member.bytes, member.crc32)
    )
    return (entry.height, entry.width, *members)


def _member(codec: int, offset: int, num_bytes: int, crc32: int) -> Member:
    return Member(CODECS[codec], offset, num_bytes, crc32)
