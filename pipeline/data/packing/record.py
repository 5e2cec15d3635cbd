"""What an output was packed from, and which of its shards are whole: `packing.jsonl` beside the manifest.

The first line names the source twice: `seen` is cheap (paths, sizes, times) and decides a rerun in
moments; `content` is the hash of all bytes and recognises the same tree after it was copied. Each
further line is a finished shard, so that an interrupted packing goes on where it stopped. The record is
no part of the data set: readers ignore it, and the manifest's id knows nothing of it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field

from pipeline.data.manifest import MANIFEST_NAME
from pipeline.data.packing.output import TEMPORARY, LocalOutput, Output, write_whole
from pipeline.data.packing.pictures import Picture
from pipeline.data.shard_table import ShardEntry, index_name, sha256_hex
from pipeline.disk import file_sha256

RECORD_NAME = "packing.jsonl"
_UPLOAD_EVERY_S = 10.0
_REQUESTS = 16


@dataclass(frozen=True)
class Source:
    """A tree and the options it is packed with, by two hashes."""

    seen: str
    content: str


@dataclass(frozen=True)
class PackingRecord:
    """The source of an output's shards, and those that were finished, by name."""

    source: Source
    shards: dict[str, ShardEntry] = field(default_factory=dict)


class RecordKeeper:
    """Adds finished shards to the record: in a folder at once, at an address every few seconds."""

    def __init__(self, output: Output, record: PackingRecord) -> None:
        self._output, self._record = output, record
        self._write()

    def add(self, shard: ShardEntry) -> None:
        """Notes a finished shard."""
        self._record.shards[shard.name] = shard
        if isinstance(self._output, LocalOutput):
            with (self._output.folder / RECORD_NAME).open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(shard)) + "\n")
        elif time.monotonic() - self._written_s > _UPLOAD_EVERY_S:  # objects cannot grow
            self._write()

    def close(self) -> None:
        """Writes what was not written yet."""
        if not isinstance(self._output, LocalOutput):
            self._write()

    def _write(self) -> None:
        lines = [asdict(self._record.source), *map(asdict, self._record.shards.values())]
        write_whole(self._output, RECORD_NAME, "".join(json.dumps(line) + "\n" for line in lines).encode())
        self._written_s = time.monotonic()


def seen_hash(pictures: Sequence[Picture], options: Sequence[object]) -> str:
    """A hash of names, sizes and modification times: equal for a tree that was not touched."""
    rows: list[object] = list(options)
    for picture in pictures:
        image, label = picture.image.stat(), picture.label.stat()
        rows.append([picture.split, str(picture.image), image.st_size, image.st_mtime_ns,
                     str(picture.label), label.st_size, label.st_mtime_ns])  # fmt: skip
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def content_hash(pictures: Sequence[Picture], digests: Sequence[str], options: Sequence[object]) -> str:
    """A hash of keys and bytes: equal for equal trees, wherever they lie."""
    rows = [[p.split, p.key, digest] for p, digest in zip(pictures, digests, strict=True)]
    return hashlib.sha256(json.dumps([*options, *rows]).encode()).hexdigest()


def read_record(output: Output) -> PackingRecord | None:
    """The record of an output, or None; a last line that was cut short is left out."""
    if output.size(RECORD_NAME) < 0:
        return None
    lines = output.read(RECORD_NAME).decode(errors="replace").splitlines()
    try:
        record = PackingRecord(Source(**json.loads(lines[0])))
    except (ValueError, TypeError, IndexError):
        return None
    for line in lines[1:]:
        try:
            shard = ShardEntry(**json.loads(line))
        except (ValueError, TypeError):
            break
        record.shards[shard.name] = shard
    return record


def whole_shards(output: Output, record: PackingRecord) -> dict[str, ShardEntry]:
    """The finished shards that are still as they were written, by name."""
    shards = list(record.shards.values())
    with ThreadPoolExecutor(_REQUESTS) as pool:
        whole = pool.map(lambda shard: _is_whole(output, shard), shards)
        return {shard.name: shard for shard, good in zip(shards, whole, strict=True) if good}


def remove_other_shards(output: Output, splits: Sequence[str], keep: set[str]) -> None:
    """Removes what an earlier, unfinished packing left in a folder's splits, but for the shards to keep.

    At an address nothing is removed: objects that the manifest does not list are not read.
    """
    if not isinstance(output, LocalOutput):
        return
    kept = keep | {index_name(name) for name in keep}
    for split in splits:
        for pattern in (f"{split}-*.tar", f"{split}-*.index.jsonl", f"{split}-*{TEMPORARY}"):
            for path in (output.folder / split).glob(pattern):
                if f"{split}/{path.name}" not in kept:
                    path.unlink()
    for name in (RECORD_NAME, MANIFEST_NAME):
        for path in output.folder.glob(f"{name}.*{TEMPORARY}"):
            path.unlink()


def _is_whole(output: Output, shard: ShardEntry) -> bool:
    """Files can be torn by a crash and are hashed; objects cannot, and their size is enough."""
    index = index_name(shard.name)
    if output.size(shard.name) != shard.bytes or output.size(index) < 0:
        return False
    if isinstance(output, LocalOutput) and file_sha256(output.folder / shard.name) != shard.sha256:
        return False
    return sha256_hex(output.read(index)) == shard.index_sha256
