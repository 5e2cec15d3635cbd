"""Ranges of local files by pread, and the open descriptors that they are read through."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.store.address import safe_name
from pipeline.errors import ShardError

if TYPE_CHECKING:
    from pipeline.data.manifest import ShardEntry


class _Descriptor:
    """An open file, closed when the last reader lets go of it, so that evicting it races with nobody."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


class LocalStore:
    """Ranges of files under a folder, by pread; threads may share it.

    Keeps at most `max_open` files open. Every failure is a ShardError that names file and range.
    """

    def __init__(self, root: str, max_open: int = 256) -> None:
        self.root = root
        self._max_open = max_open
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, name: str, offset: int, num_bytes: int) -> bytes:
        """Exactly `num_bytes` from `offset`; ShardError where the file is absent or ends before."""
        descriptor = self._descriptor(name)
        try:
            data = os.pread(descriptor.number, num_bytes, offset)
            while 0 < len(data) < num_bytes:  # one pread gives at most 2 GiB, and less when interrupted
                more = os.pread(descriptor.number, num_bytes - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise ShardError(f"{self.root}/{name}: bytes {offset}+{num_bytes}: {error.strerror}") from error
        if len(data) != num_bytes:
            raise ShardError(
                f"{self.root}/{name} is truncated: bytes {offset}+{num_bytes} end after {len(data)}; "
                "copy the shard again or pack again"
            )
        return data

    def read_all(self, name: str) -> bytes:
        """The whole file."""
        return self.read(name, 0, self.size(name))

    def exists(self, name: str) -> bool:
        """True where the file is there."""
        return self._path(name).is_file()

    def size(self, name: str) -> int:
        """The file's bytes; ShardError where it is absent."""
        try:
            return self._path(name).stat().st_size
        except OSError as error:
            raise self._absent(name, error) from error

    def stage(self, shard: ShardEntry) -> None:
        """Nothing: a local shard is where it is read."""

    def drop(self, name: str) -> None:
        """Nothing: a local file is the original."""

    def close(self) -> None:
        """Close the files, once nobody reads them any more."""
        with self._lock:
            self._open.clear()

    def _descriptor(self, name: str) -> _Descriptor:
        with self._lock:
            descriptor = self._open.get(name)
            if descriptor is not None:
                self._open.move_to_end(name)
                return descriptor
        try:
            descriptor = _Descriptor(self._path(name))
        except OSError as error:
            raise self._absent(name, error) from error
        with self._lock:
            self._open[name] = descriptor
            while len(self._open) > self._max_open:
                self._open.popitem(last=False)
        return descriptor

    def _path(self, name: str) -> Path:
        if not safe_name(name):
            raise ShardError(f"{self.root}: {name!r} is not a plain name under this folder; refused")
        return Path(self.root, name)

    def _absent(self, name: str, error: OSError) -> ShardError:
        return ShardError(
            f"{self.root}/{name} is listed but cannot be opened: {error.strerror}; "
            "copy the missing file or pack again"
        )
