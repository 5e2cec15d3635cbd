"""Ranges of files at an address: over the network at first, from the node's disk once they are there.

Nobody ever waits for a whole shard. Whatever is announced is downloaded in the background; until then,
and where the disk has no room, a read is one request for exactly its range.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING

from pipeline.config import StoreConfig
from pipeline.data.store.address import parse_address, safe_name
from pipeline.data.store.cache import ShardCache
from pipeline.data.store.downloads import Downloads, Outcome, bring
from pipeline.data.store.fetcher import Fetcher
from pipeline.data.store.transport import open_transport
from pipeline.errors import ShardError, without_credentials

if TYPE_CHECKING:
    from pipeline.data.shard_table import ShardEntry


class RemoteStore:
    """A Store over an address. May be shared by threads, not by forked processes.

    With `quiet` nothing is logged of a cache without room: `bring` tells its caller.
    """

    def __init__(self, root: str, config: StoreConfig, *, quiet: bool = False) -> None:
        address = parse_address(root)
        self.root = root.rstrip("/")
        self._fetcher = Fetcher(open_transport(address, config), config.attempts)
        self._cache = ShardCache(config.cache_dir, int(config.cache_gb * 1e9), quiet=quiet)
        self._downloads = Downloads(self._cache, self._fetcher, config.downloads)
        self._staged: dict[str, ShardEntry] = {}
        self._closed = threading.Event()

    def read(self, name: str, offset: int, num_bytes: int) -> bytes:
        """Exactly `num_bytes` from `offset`; ShardError where the file is absent or ends before."""
        url = self._url(name)
        if num_bytes == 0:
            return b""
        data = self._cache.read(url, offset, num_bytes)
        return self._fetcher.range(url, offset, num_bytes) if data is None else data

    def read_all(self, name: str, sha256: str = "") -> bytes:
        """The whole file: from the node where it is kept under that sha256, else from the address itself."""
        url = self._url(name)
        kept = self._cache.whole(url, sha256) if sha256 else None
        return self._fetcher.whole(url) if kept is None else kept

    def exists(self, name: str) -> bool:
        """True where the file is there."""
        return self._fetcher.size(self._url(name)) is not None

    def size(self, name: str) -> int:
        """The file's bytes; ShardError where it is absent."""
        url = self._url(name)
        found = self._fetcher.size(url)
        if found is None:
            raise ShardError(
                f"{without_credentials(url)} is listed but not there; copy it there or pack again"
            )
        return found

    def stage(self, shard: ShardEntry) -> None:
        """Begin to download a shard in the background."""
        self._staged[shard.name] = shard
        self._downloads.announce(self._url(shard.name), shard)

    def bring(self, shard: ShardEntry, keep_since_s: float = math.inf) -> Outcome:
        """How the download of a shard and its index ended; raises a PipelineError where they cannot be had.

        No shard that was used since `keep_since_s`, by time.time, is given up for it.
        """
        url = self._url(shard.name)
        return bring(self._cache, self._fetcher, url, shard, self._closed.is_set, keep_since_s)

    def drop(self, name: str) -> None:
        """Delete the copy of a shard that proved bad; one that was staged is downloaded again."""
        self._cache.forget(self._url(name))
        if name in self._staged:
            self.stage(self._staged[name])

    def close(self) -> None:
        """End the threads and close files and connections. The store may not be used after."""
        self._closed.set()
        self._downloads.close()
        self._cache.close()
        self._fetcher.close()

    def _url(self, name: str) -> str:
        if not safe_name(name):
            raise ShardError(f"{self.root}: {name!r} is not a plain name under this address; refused")
        return f"{self.root}/{name}"
