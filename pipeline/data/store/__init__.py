"""Where the bytes of shards come from: exact ranges of named files, checked to be whole.

`open_store` chooses by the root's scheme; whoever reads shards knows the Store protocol alone. Below it,
from the network upwards: one request (transport.py; s3, gcs, http), tried again (fetcher.py,
patience.py), kept on the node's disk (cache.py, incoming.py), ahead of its use (downloads.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipeline.config import StoreConfig
from pipeline.data.store.address import is_address, safe_name
from pipeline.data.store.local import LocalStore
from pipeline.errors import ShardError

if TYPE_CHECKING:
    from pipeline.data.shard_table import ShardEntry
    from pipeline.data.store.objects import ObjectStore

__all__ = ["LocalStore", "Store", "open_objects", "open_store", "safe_name"]


_DEFAULTS = StoreConfig()


class Store(Protocol):
    """Files under a root. Every method may be called by several threads."""

    root: str

    def read(self, name: str, offset: int, num_bytes: int) -> bytes:
        """Exactly `num_bytes` from `offset`; ShardError where the file is absent or ends before."""

    def read_all(self, name: str, sha256: str = "") -> bytes:
        """The whole file; a copy on this machine will do where it has the sha256 that is given."""

    def exists(self, name: str) -> bool:
        """True where the file is there."""

    def size(self, name: str) -> int:
        """The file's bytes; ShardError where it is absent."""

    def stage(self, shard: ShardEntry) -> None:
        """Begin to bring a shard to this machine, in the background; idle where it lies here already."""

    def drop(self, name: str) -> None:
        """Forget the copy of a file that proved bad, so that it is brought again; idle for originals."""

    def close(self) -> None:
        """End whatever runs in the background. The store may not be used after."""


def open_objects(root: str, config: StoreConfig) -> ObjectStore:
    """The objects below an address of S3, to be written under conditions; raises as `open_store` does."""
    from pipeline.data.store.objects import ObjectStore  # noqa: PLC0415 - imports boto3, as RemoteStore does

    return ObjectStore(root, config)


def open_store(root: str, config: StoreConfig = _DEFAULTS) -> Store:
    """The store for a root; ConfigError for an address that may not be opened, ShardError for no folder."""
    if is_address(root):
        # smart_open, boto3 and requests take a while to import, and local folders do without them.
        from pipeline.data.store.remote import RemoteStore  # noqa: PLC0415

        return RemoteStore(root, config)
    if not Path(root).is_dir():
        raise ShardError(
            f"no shards at {root}: no such folder; pack a data set with "
            f"python jobs/pack_cityscapes.py --root TREE --out {root}"
        )
    return LocalStore(root)
