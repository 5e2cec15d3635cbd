"""Files read by pread through a bounded number of descriptors; threads may share it."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path


class OpenFile:
    """An open file, closed when the last reader lets go of it, so that forgetting it races with nobody."""

    def __init__(self, path: Path) -> None:
        self.number = -1
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)

    def read(self, offset: int, num_bytes: int) -> bytes:
        """`num_bytes` from `offset`, or fewer where the file ends before; raises OSError."""
        data = os.pread(self.number, num_bytes, offset)
        while 0 < len(data) < num_bytes:  # one pread gives at most 2 GiB, and less when interrupted
            more = os.pread(self.number, num_bytes - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data


class OpenFiles:
    """At most `limit` open files, those used longest ago closed first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: OrderedDict[Path, OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path) -> OpenFile:
        """The open file; raises OSError where it cannot be opened."""
        with self._lock:
            found = self._open.get(path)
            if found is not None:
                self._open.move_to_end(path)
                return found
        opened = OpenFile(path)
        with self._lock:
            self._open[path] = opened
            while len(self._open) > self._limit:
                self._open.popitem(last=False)
        return opened

    def forget(self, path: Path) -> OpenFile | None:
        """The file that was open under a path, which the next `get` opens anew."""
        with self._lock:
            return self._open.pop(path, None)

    def all(self) -> dict[Path, OpenFile]:
        """The open files by their paths."""
        with self._lock:
            return dict(self._open)

    def clear(self) -> None:
        """Close all files, once nobody reads them any more."""
        with self._lock:
            self._open.clear()
