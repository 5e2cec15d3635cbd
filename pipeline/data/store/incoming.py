"""A file on its way into the cache: under another name until every byte of it is there and is right."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from pipeline.disk import flush

PARTIAL = ".part"
"""Ending of the names of files that may not be whole."""


class Incoming:
    """A shard in the making: `add` its bytes in order, then `keep` it, or `discard` it."""

    def __init__(self, path: Path, sha256: str, num_bytes: int) -> None:
        self._path = path
        self._partial = path.with_name(path.name + PARTIAL)
        self._sha256 = sha256
        self._digest = hashlib.sha256()
        self._file = self._partial.open("wb")
        self._partial.chmod(0o600)
        try:
            if num_bytes:  # the index of an empty shard has none
                os.posix_fallocate(self._file.fileno(), 0, num_bytes)  # a full disk shows now, not at the end
        except OSError:
            self.discard()
            raise

    def add(self, data: bytes) -> None:
        """Write the next bytes."""
        self._digest.update(data)
        self._file.write(data)

    def keep(self) -> bool:
        """True once the shard is in its place; False, and nothing is kept, where its sha256 is another."""
        if self._digest.hexdigest() != self._sha256:
            self.discard()
            return False
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.rename(self._path)
        flush(self._path.parent)
        return True

    def discard(self) -> None:
        """Delete what has arrived; nothing after `keep`."""
        self._file.close()
        self._partial.unlink(missing_ok=True)
