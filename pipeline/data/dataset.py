"""Random access to the samples of a split: index, exact read, CRC, decode, compare.

Every byte that reaches a pixel was checked against the index's crc32, and the index against the
manifest's hash, so a flipped bit or a cut file is an error that names shard, key and offset, never a
wrong picture. Threads may share a data set.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pipeline.data.decode import decode_image, decode_label, place
from pipeline.data.labels import ClassTable
from pipeline.data.manifest import (
    Manifest,
    Member,
    SampleEntry,
    Split,
    load_index,
    load_manifest,
)
from pipeline.data.store import Store, open_store
from pipeline.errors import ShardError, nearest

_INDEXES_KEPT = 128
"""Parsed indexes in memory: twice the shards that a plan of 64 streams reads side by side."""
_AUDIT_BYTES = 2**24


@dataclass(frozen=True)
class Sample:
    """A decoded sample: RGB uint8 image, uint8 train ids of the same height and width."""

    key: str
    image_HW3: NDArray[np.uint8]
    label_HW: NDArray[np.uint8]


class ShardDataset:
    """The samples of one split, by (shard, sample) or by index in shard order."""

    def __init__(self, store: Store, manifest: Manifest, split: Split) -> None:
        self.manifest = manifest
        self.split = split
        self._store = store
        self._ends = np.cumsum(split.counts)
        self._index = lru_cache(maxsize=_INDEXES_KEPT)(self._load_index)

    @classmethod
    def open(cls, root: str, split: str) -> ShardDataset:
        """The split of the data set at `root`; raises ShardError for an absent or empty one."""
        manifest = load_manifest(root)
        if split not in manifest.splits:
            raise ShardError(
                f"{root} has no split {split!r}{nearest(split, manifest.splits)}; "
                f"it has {', '.join(manifest.splits) or 'none'}"
            )
        found = manifest.splits[split]
        if found.samples == 0:
            raise ShardError(
                f"{root}: split {split!r} has {found.samples} samples in {len(found.shards)} shards; "
                "pack a tree that has pictures in that split"
            )
        return cls(open_store(root), manifest, found)

    @property
    def root(self) -> str:
        """Where the shards lie."""
        return self._store.root

    @property
    def classes(self) -> ClassTable:
        """What the train ids mean."""
        return self.manifest.classes

    def __len__(self) -> int:
        return self.split.samples

    def preflight(self) -> None:
        """Raises ShardError for the first listed shard, or index, that is absent or not the manifest's."""
        for shard in self.split.shards:
            size = self._store.size(shard.name)
            if size != shard.bytes:
                raise ShardError(
                    f"{self.root}/{shard.name} has {size} bytes, the manifest says {shard.bytes}; "
                    "copy the shard again or pack again"
                )
            load_index(self._store, shard)

    def audit(self) -> None:
        """Raises ShardError for the first shard whose bytes are not the manifest's sha256; reads them all."""
        self.preflight()
        for shard in self.split.shards:
            digest = hashlib.sha256()
            for offset in range(0, shard.bytes, _AUDIT_BYTES):
                digest.update(self._store.read(shard.name, offset, min(_AUDIT_BYTES, shard.bytes - offset)))
            if digest.hexdigest() != shard.sha256:
                raise ShardError(
                    f"{self.root}/{shard.name} is not the shard that the manifest lists (sha256 differs); "
                    "copy the shard again or pack again"
                )

    def entry(self, shard: int, sample: int) -> SampleEntry:
        """The index line of a sample."""
        return self._index(shard)[sample]

    def read(self, shard: int, sample: int) -> Sample:
        """The decoded sample; raises ShardError naming shard, key and offset."""
        name = self.split.shards[shard].name
        entry = self.entry(shard, sample)
        where = f"{self.root}/{name}"
        image_HW3 = decode_image(self._member(name, entry, entry.image), entry, where)
        label_HW = decode_label(self._member(name, entry, entry.label), entry, where)
        self._refuse_foreign_ids(label_HW, entry, where)
        return Sample(entry.key, image_HW3, label_HW)

    def sample_at(self, index: int) -> Sample:
        """The sample at an index of the evaluation order: shard by shard, as packed."""
        return self.read(*self.locate(index))

    def locate(self, index: int) -> tuple[int, int]:
        """(shard, sample) at an index of the evaluation order."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - int(self._ends[shard] - self.split.counts[shard])

    def _load_index(self, shard: int) -> tuple[SampleEntry, ...]:
        return load_index(self._store, self.split.shards[shard])

    def _member(self, name: str, entry: SampleEntry, member: Member) -> bytes:
        data = self._store.read(name, member.offset, member.bytes)
        if _crc32_function()(data) != member.crc32:
            raise ShardError(
                f"{self.root}/{place(name, entry, member)}: {member.bytes} bytes are not those that "
                "were packed (crc32 differs); copy the shard again or pack again"
            )
        return data

    def _refuse_foreign_ids(self, label_HW: NDArray[np.uint8], entry: SampleEntry, where: str) -> None:
        # 255 wraps to 0, so one maximum finds every id that is neither a class nor ignored. A stray id
        # would otherwise surface as an assertion inside a CUDA kernel.
        if int((label_HW + np.uint8(1)).max()) > self.classes.num_classes:
            ids = [i for i in np.unique(label_HW).tolist() if self.classes.num_classes <= i < 255]
            raise ShardError(
                f"{place(where, entry, entry.label)}: train ids {ids} are outside the "
                f"manifest's {self.classes.num_classes} classes; pack again"
            )


@cache
def _crc32_function() -> Callable[[bytes], int]:
    """The crc32 of isal where that is installed (it is several times faster), else of zlib."""
    try:
        from isal import isal_zlib  # noqa: PLC0415 - optional, and not part of the core's imports
    except ImportError:
        return zlib.crc32
    return cast("Callable[[bytes], int]", isal_zlib.crc32)
