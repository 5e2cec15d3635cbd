"""The samples of a split, by number: where each lies, and reading it whole.

The index is checked against the manifest's hash, and every byte that reaches a pixel against the index
or a CRC of the picture's own, so a flipped bit or a cut file is an error that names shard, key and
offset, never a wrong picture. Threads may share a data set; each takes a reader of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataConfig, StoreConfig
from pipeline.data.drives import Part, refuse_wrong_drives
from pipeline.data.index import SampleEntry, load_index
from pipeline.data.index_cache import IndexCache
from pipeline.data.labels import ClassTable
from pipeline.data.manifest import Manifest, Split, load_manifest
from pipeline.data.reader import Sample, SampleReader, SampleRef
from pipeline.data.shard_table import ShardEntry, index_name
from pipeline.data.store import LocalStore, Store, open_store
from pipeline.errors import ShardError, nearest

_PROBES = 32
"""Indexes that are read before a run."""
_INDEX_READERS = 8
"""Threads that read all indexes of a split: each read at an address waits for a server."""
_DEFAULTS = StoreConfig()


class ShardDataset:
    """The samples of one split, or of a part of it, by (shard, sample) or by index in shard order.

    In a part the samples of a shard are numbered anew, without those that are left out; nothing of a whole
    split or of its shards is copied.
    """

    def __init__(
        self, store: Store, manifest: Manifest, split: Split,
        part: Part | None = None, counts: NDArray[np.int64] | None = None,
    ) -> None:  # fmt: skip
        """`counts` are what the part has of each shard's samples."""
        self.manifest = manifest
        self.split = split
        self.part = part
        self.counts = split.counts if counts is None else counts
        """Samples of each shard, int64; a part may have none of a shard."""
        self._store = store
        self._ends = np.cumsum(self.counts)
        self._indexes = IndexCache(self._load_index)

    @classmethod
    def open(cls, root: str, split: str, store: StoreConfig = _DEFAULTS) -> ShardDataset:
        """The split of the data set at `root`; raises ShardError for an absent or empty one."""
        manifest = load_manifest(root, store)
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
        return cls(open_store(root, store), manifest, found)

    @property
    def root(self) -> str:
        """Where the shards lie."""
        return self._store.root

    @property
    def classes(self) -> ClassTable:
        """What the train ids mean."""
        return self.manifest.classes

    @property
    def shards(self) -> list[ShardEntry]:
        """The shards that have a sample of these."""
        return [self.split.shards[int(at)] for at in np.flatnonzero(self.counts)]

    def __len__(self) -> int:
        return int(self.counts.sum())

    def hold_out(self, drives: Sequence[str]) -> tuple[ShardDataset, ShardDataset]:
        """All samples but those of the drives, and those alone, of the same shards.

        Reads every index once. Raises ConfigError for a drive that no sample is of, and where none is left.
        """
        assert self.part is None, self.part
        held_out = Part(tuple(drives), is_held_out=True)
        counts = np.zeros_like(self.counts)
        unknown = dict.fromkeys(drives)
        for shard, keys in enumerate(self._keys_by_shard()):
            theirs = [key for key in keys if held_out.has(key)]
            counts[shard] = len(theirs)
            for drive in [d for d in unknown if any(map(Part((d,), is_held_out=True).has, theirs))]:
                del unknown[drive]
        rest = self.counts - counts
        if unknown or not rest.any():
            refuse_wrong_drives(list(unknown), int(rest.sum()), self.split.name, self.keys())
        parts = (Part(held_out.drives, is_held_out=False), rest), (held_out, counts)
        trained, evaluated = (
            ShardDataset(self._store, self.manifest, self.split, part, of_shards) for part, of_shards in parts
        )
        return trained, evaluated

    def keys(self) -> list[str]:
        """The keys of all samples, shard by shard; reads every index."""
        return [key for keys in self._keys_by_shard() for key in keys]

    def _keys_by_shard(self) -> Iterator[list[str]]:
        with ThreadPoolExecutor(_INDEX_READERS, thread_name_prefix="keys") as pool:
            yield from pool.map(self._keys_of, range(len(self.split.shards)))

    def _keys_of(self, shard: int) -> list[str]:
        return [entry.key for entry in self._load_index(shard)]

    def preflight(self) -> None:
        """Raises ShardError for a listed shard, or index, that is absent or not the manifest's.

        Of a local split it looks at every file; at an address, where a look is a request, and into
        indexes, at a few that are spread over the split. The rest are checked at their first use.
        """
        shards = self.split.shards
        last = len(shards) - 1
        few = sorted({last * number // (_PROBES - 1) for number in range(_PROBES)})
        for at in range(len(shards)) if isinstance(self._store, LocalStore) else few:
            self._refuse_other_size(shards[at])
            self._store.size(index_name(shards[at].name))
        for at in few:
            load_index(self._store, shards[at])

    def _refuse_other_size(self, shard: ShardEntry) -> None:
        size = self._store.size(shard.name)
        if size != shard.bytes:
            raise ShardError(
                f"{self.root}/{shard.name} has {size} bytes, the manifest says {shard.bytes}; "
                "copy the shard again or pack again"
            )

    def entry(self, shard: int, sample: int) -> SampleEntry:
        """The index line of a sample."""
        return self._indexes.get(shard)[sample]

    def ref(self, shard: int, sample: int) -> SampleRef:
        """All that a reader must be told of a sample."""
        return SampleRef(self.split.shards[shard], self.entry(shard, sample))

    def reader(self, decoded_cache: str = "") -> SampleReader:
        """A reader of these samples, for one thread; `decoded_cache` is a folder, or empty for none."""
        return SampleReader(self._store, self.classes.num_classes, decoded_cache)

    def stage(self, shard: ShardEntry) -> None:
        """Begin to bring a shard to this machine, in the background."""
        self._store.stage(shard)

    def prefetch_index(self, shard: int) -> None:
        """Begin to load the index of a shard, so that nobody waits for a server when it is needed."""
        self._indexes.prefetch(shard)

    def read(self, shard: int, sample: int) -> Sample:
        """The decoded sample; raises ShardError naming shard, key and offset."""
        return self.reader().read(self.ref(shard, sample))

    def sample_at(self, index: int) -> Sample:
        """The sample at an index of the evaluation order: shard by shard, as packed."""
        return self.read(*self.locate(index))

    def locate(self, index: int) -> tuple[int, int]:
        """(shard, sample) at an index of the evaluation order."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} samples")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - int(self._ends[shard] - self.counts[shard])

    def _load_index(self, shard: int) -> tuple[SampleEntry, ...]:
        entries, part = load_index(self._store, self.split.shards[shard]), self.part
        return entries if part is None else tuple(entry for entry in entries if part.has(entry.key))


def open_splits(root: str, config: DataConfig) -> tuple[ShardDataset, ShardDataset]:
    """What a run is trained on, or what stands for it, and what it is evaluated on.

    Raises ShardError for an absent or empty split, ConfigError for drives that cannot be held out.
    """
    training = ShardDataset.open(root, config.listed_split, config.store)
    if config.held_out:
        return training.hold_out(config.held_out_drives)
    return training, ShardDataset.open(root, config.val_split, config.store)
