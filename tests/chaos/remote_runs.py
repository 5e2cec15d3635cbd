"""Runs under torchrun that are kept in an object store: a server that heeds conditions, in memory.

Where the machine is gone, nothing but the store is left, and the next attempt has a disk with nothing on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from pipeline.launch.paths import copies_folder
from pipeline.train.checkpoint import COMMIT
from tests.chaos.torchrun_runs import MACHINE, RUN_NAME
from tests.moto_server import serving_s3
from tests.rclone_server import s3_environment

BUCKET = "chaos"
_TOMBSTONE_BYTES = 20
"""More than a COMMIT has that ends a checkpoint which was never finished."""


@dataclass(frozen=True)
class Store:
    """An object store, empty at first."""

    environment: dict[str, str]
    """What a process must have to find it."""
    client: Any

    def address(self, folder: Path) -> str:
        """Where the runs of a point are."""
        return f"s3://{BUCKET}/{folder.name}"

    def copy(self, folder: Path) -> Path:
        """The working copy of a point's run."""
        return copies_folder(self.address(folder), str(folder / MACHINE)) / RUN_NAME

    def other_than(self, folder: Path) -> list[str]:
        """In what the store has other bytes than the working copy of an ended run, COMMITs and files."""
        copy, found = self.copy(folder), self._objects(f"{folder.name}/{RUN_NAME}/")
        whole = {name.rpartition("/")[0] for name, data in found.items() if _is_commit(name, data)}
        there = {name: data for name, data in found.items() if name.rpartition("/")[0] in whole}
        files = [path for path in (copy / "checkpoints").rglob("*") if path.is_file()]
        here = {path.relative_to(copy).as_posix(): path.read_bytes() for path in files}
        for path in (copy / "journal").glob("*.jsonl"):
            segments = sorted(name for name in found if name.startswith(f"journal/{path.stem}/"))
            there[f"journal/{path.name}"] = b"".join(found[name] for name in segments)
            lines = path.read_bytes()
            here[f"journal/{path.name}"] = lines[: lines.rfind(b"\n") + 1]  # a torn one is not shipped
        return [
            f"the store has another {name}"
            for name in sorted(here.keys() | there.keys())
            if here.get(name) != there.get(name)
        ]

    def _objects(self, prefix: str) -> dict[str, bytes]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return {
            key.removeprefix(prefix): self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            for key in keys
        }


def _is_commit(name: str, data: bytes) -> bool:
    return name.startswith("checkpoints/") and name.endswith(COMMIT) and len(data) > _TOMBSTONE_BYTES


@contextmanager
def object_store() -> Iterator[Store]:
    """A store that is there for as long as the context is open."""
    with serving_s3() as place:
        environment = s3_environment(f"http://{place}")
        client = boto3.client(
            "s3", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name=environment["AWS_DEFAULT_REGION"],
            aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        )  # fmt: skip
        client.create_bucket(Bucket=BUCKET)
        yield Store(environment, client)
        client.close()
