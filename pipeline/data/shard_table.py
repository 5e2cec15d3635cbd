"""The shards of a split as columns: a million of them in 150 MB, each an entry when it is asked for.

As objects they would take three times that in every rank of a node, and seconds of the collector's time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard of the manifest; `name` is relative to the root."""

    name: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str


def index_name(shard_name: str) -> str:
    """The name of the index beside a shard."""
    return shard_name.removesuffix(".tar") + ".index.jsonl"


def sha256_hex(data: bytes) -> str:
    """sha256 as a manifest writes it: 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


class ShardTable(Sequence[ShardEntry]):
    """Shards in order, unchangeable. Names are ASCII, and hashes 64 lower-case hex digits."""

    def __init__(self, shards: Iterable[ShardEntry]) -> None:
        names: list[str] = []
        digests: list[str] = []
        numbers: list[int] = []
        for shard in shards:
            names.append(shard.name)
            digests += shard.sha256, shard.index_sha256
            numbers += shard.samples, shard.bytes
        # One text and where each name ends: one long name must not widen a million others.
        self._names = "".join(names).encode("ascii")
        self._name_ends = np.cumsum(np.fromiter(map(len, names), np.int64, len(names)))
        self._digests = bytes.fromhex("".join(digests))
        assert len(self._digests) == 2 * _DIGEST_BYTES * len(names), "each hash has 64 digits"
        columns = np.array(numbers, np.int64).reshape(-1, 2)
        self.samples: NDArray[np.int64] = np.ascontiguousarray(columns[:, 0])
        self.bytes: NDArray[np.int64] = np.ascontiguousarray(columns[:, 1])
        self.samples.flags.writeable = self.bytes.flags.writeable = False

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> ShardEntry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ShardEntry, ...]: ...

    def __getitem__(self, index: int | slice) -> ShardEntry | tuple[ShardEntry, ...]:
        if isinstance(index, slice):
            return tuple(self._entry(at) for at in range(len(self))[index])
        return self._entry(range(len(self))[index])  # IndexError beyond the ends

    def __iter__(self) -> Iterator[ShardEntry]:
        return map(self._entry, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ShardTable):
            return NotImplemented
        return self._parts() == other._parts()

    def __hash__(self) -> int:
        return hash(self._parts())

    def _parts(self) -> tuple[bytes, ...]:
        return (
            self._names, self._digests, self._name_ends.tobytes(),
            self.samples.tobytes(), self.bytes.tobytes(),
        )  # fmt: skip

    def _entry(self, at: int) -> ShardEntry:
        begin = int(self._name_ends[at - 1]) if at else 0
        name = self._names[begin : int(self._name_ends[at])].decode("ascii")
        digests = self._digests[2 * _DIGEST_BYTES * at : 2 * _DIGEST_BYTES * (at + 1)].hex()
        return ShardEntry(
            name,
            int(self.samples[at]),
            int(self.bytes[at]),
            digests[: 2 * _DIGEST_BYTES],
            digests[2 * _DIGEST_BYTES :],
        )
