"""Where the bytes of shards come from: exact ranges of named files, checked to be whole.

`open_store` chooses by the root's scheme. Only local folders are read so far; a remote store needs
the same four methods and nothing else changes.
"""

from __future__ import annotations

import os
import re
import threading
from collections import OrderedDict
from pathlib import Path

from pipeline.errors import ConfigError, ShardError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://|^pipe:")
_SAFE_NAME = re.compile(r"(?!.*(?:^|/)\.{1,2}(?:/|$))[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*")


def safe_name(name: str) -> bool:
    """True for a plain relative name that cannot leave the root, such as `train/train-000000.tar`."""
    return _SAFE_NAME.fullmatch(name) is not None


def open_store(root: str) -> LocalStore:
    """The store for a root; raises ConfigError for a scheme, ShardError for a folder that is not there."""
    if _SCHEME.match(root):
        raise ConfigError(
            f"cannot read shards from {root}: this version reads local folders only; "
            "copy the shards to a folder and type its path"
        )
    folder = Path(root)
    if not folder.is_dir():
        raise ShardError(
            f"no shards at {root}: no such folder; pack a data set with "
            f"python jobs/pack_cityscapes.py --root TREE --out {root}"
        )
    return LocalStore(root)


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
