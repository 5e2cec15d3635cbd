"""Objects below an address of S3, with what a run needs of them: to be made once, and replaced by one writer.

Two conditions carry all of it: `If-None-Match: *` (made only where nothing has the name) and `If-Match`
(replaced only where nobody else replaced it). Whether a server heeds them is asked by `heeds_conditions`,
since those that do not know them say yes to everything. An answer that was lost on its way is no riddle:
the object that is there is compared with the one that was sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from botocore.exceptions import BotoCoreError, ClientError

from pipeline.config import StoreConfig
from pipeline.data.store.address import parse_address, safe_name
from pipeline.data.store.fetcher import Fetcher
from pipeline.data.store.s3 import MAY_PASS, S3Transport, s3_client, sorted_error, status_of
from pipeline.data.store.transport import Doing
from pipeline.errors import ShardError

_ONE_REQUEST_BYTES = 8 << 20
"""Up to this size a file is one request; beyond it, parts."""
_NAMES_AT_ONCE = 1000
_ABSENT = ("NoSuchKey", "404", "NotFound")

T = TypeVar("T")


@dataclass(frozen=True)
class Tagged:
    """An object as it was read, with the tag that names this very content of it."""

    data: bytes
    tag: str


class ObjectStore:
    """Objects by their names below `root`. May be shared by threads.

    What may pass is tried again, as in reading shards; then every method raises WorldStateError.
    """

    def __init__(self, root: str, config: StoreConfig) -> None:
        address = parse_address(root, "runs")
        self.root = root.rstrip("/")
        self._bucket, self._prefix = address.host, f"{address.path}/" if address.path else ""
        self._client = s3_client(config.timeout_s)
        self._fetcher = Fetcher(S3Transport(config.timeout_s), config.attempts)

    def names(self, folder: str) -> dict[str, int]:
        """Name → bytes of every object whose name begins with `folder`."""
        found: dict[str, int] = {}
        request = {"Bucket": self._bucket, "Prefix": self._prefix + folder, "MaxKeys": _NAMES_AT_ONCE}
        list_next = partial(self._client.list_objects_v2, **request)
        while True:
            page = self._tried(folder, list_next, "written")
            for entry in page.get("Contents", ()):
                found[entry["Key"][len(self._prefix) :]] = int(entry["Size"])
            if not page.get("IsTruncated"):
                return found
            list_next = partial(list_next, ContinuationToken=page["NextContinuationToken"])

    def read(self, name: str) -> Tagged | None:
        """A small object, None where there is none."""

        def request() -> Tagged | None:
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
                return Tagged(answer["Body"].read(), answer["ETag"])
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in _ABSENT:
                    return None
                raise

        return self._tried(name, request, "written")  # what is absent now can only be the bucket

    def size(self, name: str) -> int | None:
        """An object's bytes, None where there is none."""
        return self._fetcher.size(f"{self.root}/{name}")

    def create(self, name: str, data: bytes) -> bool:
        """Make an object that must not be there; False where another content has the name."""
        if self._put(name, data, {"IfNoneMatch": "*"}) is not None:
            return True
        there = self.read(name)
        return there is not None and there.data == data

    def replace(self, name: str, data: bytes, tag: str) -> str | None:
        """Replace the content that has the tag, and return the tag of the new one; None where it is gone."""
        if (new := self._put(name, data, {"IfMatch": tag})) is not None:
            return new
        there = self.read(name)
        return there.tag if there is not None and there.data == data else None

    def put(self, name: str, path: Path) -> None:
        """Write a whole file, whatever has the name. Raises OSError where it cannot be read."""
        if path.stat().st_size > _ONE_REQUEST_BYTES:
            self._fetcher.put(f"{self.root}/{name}", path)
        else:
            self._put(name, path.read_bytes(), {})

    def fetch(self, name: str, path: Path) -> None:
        """Bring a whole object to the disk; ShardError where there is none, OSError of the disk."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not safe_name(name):
            raise ShardError(f"{self.root}: {name!r} is not a plain name under this address; refused")
        with path.open("wb") as file:
            for part in self._fetcher.parts(f"{self.root}/{name}"):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())

    def remove(self, name: str) -> None:
        """Remove an object; nothing where there is none."""
        self._tried(
            name, lambda: self._client.delete_object(Bucket=self._bucket, Key=self._key(name)), "written"
        )

    def heeds_conditions(self, name: str) -> bool:
        """Whether the server refuses what its conditions forbid; `name` is an object of the caller's own."""
        there = self.read(name)
        if there is None:
            return False
        other = there.data + b" "
        return self._put(name, other, {"IfNoneMatch": "*"}) is None and (
            self._put(name, other, {"IfMatch": '"00000000000000000000000000000000"'}) is None
        )

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()
        self._fetcher.close()

    def _put(self, name: str, data: bytes, condition: dict[str, str]) -> str | None:
        """The new object's tag, None where the condition did not hold."""

        def request() -> str | None:
            try:
                answer = self._client.put_object(
                    Bucket=self._bucket, Key=self._key(name), Body=data, **condition
                )
                return str(answer["ETag"])
            except ClientError as error:
                gone = status_of(error) == 404 and "IfMatch" in condition and _code(error) != "NoSuchBucket"
                if status_of(error) == 412 or gone:
                    return None
                raise

        return self._tried(name, request, "written")

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _tried(self, name: str, request: Callable[[], T], doing: Doing = "read") -> T:
        url = f"{self.root}/{name}"

        def sorting() -> T:
            try:
                return request()
            except (BotoCoreError, ClientError, *MAY_PASS) as error:
                raise sorted_error(url, error, doing) from error

        return self._fetcher.tried(url, sorting)


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
