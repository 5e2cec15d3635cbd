"""Decoded samples on a local disk: one file a shard, filled as samples are read, mapped to read them.

A file is named by the hashes of its shard and index, so other content never meets it. Pixels are
written before the byte that says so, by calls that report a full disk instead of dying of it; a
process killed at any moment leaves whole samples and absent ones. Until all are there, the machine's
boot id is part of the name: after a power loss a disk may hold that byte without the pixels, so what
an earlier boot left unfinished is removed. Finished files are synced, then renamed.

What a sample was decoded from was checked; its pixels are not checked again here, so a crop costs its
own pages alone. Whoever does not trust a disk does without the cache.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.index import SampleEntry, load_index
from pipeline.data.shard_table import ShardEntry
from pipeline.data.store import Store
from pipeline.data.store.cache import SPARED_BYTES
from pipeline.disk import flush

logger = logging.getLogger(__name__)

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_KEPT_OPEN = 128
_HERE = b"\x01"
_CHANNELS = 4  # three of the image, one of the label

Pixels = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Image (H, W, 3) and label (H, W)."""


class DecodedCache:
    """The samples that were decoded before, by any process of this machine.

    A disk that refuses, or has little room left, is logged once, and filling ends; what is cached is still
    found.
    """

    def __init__(self, folder: str, store: Store) -> None:
        self._folder, self._store = Path(folder), store
        self._files: OrderedDict[ShardEntry, _ShardFile | None] = OrderedDict()
        self._is_filling = True

    def find(self, shard: ShardEntry, entry: SampleEntry) -> Pixels | None:
        """The sample's pixels, views of the file and to be read only; None where they are not there."""
        file = self._file(shard)
        try:
            return None if file is None else file.read(entry)
        except OSError as error:
            self._stop_filling(error)
            return None

    def keep(self, shard: ShardEntry, entry: SampleEntry, pixels: Pixels) -> None:
        """Write a sample for all later reads."""
        file = self._file(shard)
        if file is None or not self._is_filling:
            return
        try:
            file.write(entry, pixels)
        except OSError as error:
            self._stop_filling(error)

    def _file(self, shard: ShardEntry) -> _ShardFile | None:
        """The shard's file; None where it could not be opened: a try costs the reading of an index."""
        if shard not in self._files:
            index = load_index(self._store, shard)
            try:
                self._files[shard] = _ShardFile(self._folder, shard, index, self._is_filling)
            except OSError as error:
                self._files[shard] = None
                self._stop_filling(error)
        self._files.move_to_end(shard)
        while len(self._files) > _KEPT_OPEN:
            self._files.popitem(last=False)
        return self._files[shard]

    def _stop_filling(self, error: OSError) -> None:
        if self._is_filling:
            logger.warning("[event] the decoded cache %s grows no further: %s", self._folder, error.strerror)
            for file in filter(None, self._files.values()):
                file.remove_if_empty()
        self._is_filling = False


class _ShardFile:
    """A byte a sample that says whether it is there, then the pixels of all samples, in their order."""

    def __init__(
        self, folder: Path, shard: ShardEntry, entries: Sequence[SampleEntry], may_create: bool
    ) -> None:
        self._descriptor = -1
        stem = f"{shard.sha256}-{shard.index_sha256[:16]}"
        self._finished = folder / f"{stem}.pixels"
        self._unfinished = folder / f"{stem}.{_BOOT_ID.read_text().strip()}.filling"
        self._numbers = {entry.key: number for number, entry in enumerate(entries)}
        sizes = (_CHANNELS * entry.height * entry.width for entry in entries)
        *self._offsets, self._num_bytes = accumulate(sizes, initial=len(entries))
        folder.mkdir(parents=True, exist_ok=True)
        found = self._open_finished()
        self._is_finished = found is not None
        self._descriptor = self._open_unfinished(may_create) if found is None else found
        self._map = mmap.mmap(self._descriptor, self._num_bytes, prot=mmap.PROT_READ)
        self._finish_if_whole()

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)  # and lets go of its lock

    def read(self, entry: SampleEntry) -> Pixels | None:
        number = self._numbers[entry.key]
        # By a call: on a full RAM disk, to look at unwritten bytes through the map is a SIGBUS.
        if os.pread(self._descriptor, 1, number) != _HERE:
            return None
        height, width = entry.height, entry.width
        data = np.frombuffer(self._map, np.uint8, _CHANNELS * height * width, self._offsets[number])
        image, label = data[: 3 * height * width], data[3 * height * width :]
        return image.reshape(height, width, 3), label.reshape(height, width)

    def write(self, entry: SampleEntry, pixels: Pixels) -> None:
        # Two processes may write the same sample side by side: the bytes are the same. Calls, not stores
        # into the map: the kernel keeps their order for all readers, and a full disk is an error here
        # where it would be a SIGBUS there.
        number = self._numbers[entry.key]
        image_HW3, label_HW = pixels
        _refuse_last_room(self._descriptor, image_HW3.nbytes + label_HW.nbytes)
        offset = self._offsets[number]
        _write(self._descriptor, image_HW3, offset)
        _write(self._descriptor, label_HW, offset + image_HW3.size)
        _write(self._descriptor, np.frombuffer(_HERE, np.uint8), number)
        self._finish_if_whole()

    def _open_finished(self) -> int | None:
        try:
            descriptor = os.open(self._finished, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if os.fstat(descriptor).st_size == self._num_bytes:
            return descriptor
        os.close(descriptor)
        self._finished.unlink(missing_ok=True)
        return None

    def remove_if_empty(self) -> None:
        """Removes a file without a sample, or leaves that to the last of the processes that have it open."""
        if self._is_finished or _HERE in os.pread(self._descriptor, len(self._numbers), 0):
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _HERE not in os.pread(self._descriptor, len(self._numbers), 0):
                self._unfinished.unlink(missing_ok=True)
        except OSError:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _open_unfinished(self, may_create: bool) -> int:
        for path in self._finished.parent.glob(f"{self._finished.stem}.*.filling"):
            if path != self._unfinished:
                _remove_unless_used(path)
        create = os.O_CREAT if may_create else 0
        descriptor = os.open(self._unfinished, os.O_RDWR | create | os.O_CLOEXEC, 0o644)
        size = os.fstat(descriptor).st_size
        if size not in (0, self._num_bytes):
            os.close(descriptor)
            self._unfinished.unlink(missing_ok=True)
            descriptor = os.open(self._unfinished, os.O_RDWR | create | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # other machines on a shared disk leave it alone
            os.ftruncate(descriptor, self._num_bytes)
        except OSError:
            os.close(descriptor)
            if not size:
                self._unfinished.unlink(missing_ok=True)
            raise
        return descriptor

    def _finish_if_whole(self) -> None:
        if self._is_finished:
            return
        num_samples = len(self._numbers)
        if os.pread(self._descriptor, num_samples, 0).count(_HERE) == num_samples:
            self._is_finished = True
            # Beside the reading: a disk may take a minute for what was written.
            threading.Thread(target=self._finish, name="decoded-cache", daemon=True).start()

    def _finish(self) -> None:
        try:
            os.fsync(self._descriptor)
            self._unfinished.rename(self._finished)
            flush(self._finished.parent)
        except FileNotFoundError:
            return  # another process was there first
        except OSError as error:
            logger.warning("[event] cannot finish %s: %s", self._unfinished, error.strerror)


def _refuse_last_room(descriptor: int, num_bytes: int) -> None:
    """Raises OSError where so many bytes more would take what checkpoints and others need of the disk."""
    disk = os.fstatvfs(descriptor)
    if disk.f_bavail * disk.f_frsize < num_bytes + SPARED_BYTES:
        raise OSError(errno.ENOSPC, f"its disk has less than {SPARED_BYTES / 1e9:.1f} GB left")


def _write(descriptor: int, data: NDArray[np.uint8], offset: int) -> None:
    """Writes all of it; raises OSError where the disk refuses."""
    rest = np.ascontiguousarray(data).data.cast("B")
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def _remove_unless_used(path: Path) -> None:
    """Removes what an earlier boot left; another machine on a shared disk holds a lock on its own."""
    with suppress(FileNotFoundError, BlockingIOError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        finally:
            os.close(descriptor)
