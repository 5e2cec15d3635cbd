"""What a folder was packed from, and which of its shards are whole: `packing.jsonl` beside the manifest.

The first line names the source twice: `seen` is cheap (paths, sizes, times) and decides a rerun in
moments; `content` is the hash of all bytes and recognises the same tree after it was copied. Each
further line is a finished shard, so that an interrupted packing goes on where it stopped. The record is
no part of the data set: readers ignore it, and the manifest's id knows nothing of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pipeline.data.manifest import ShardEntry, index_name
from pipeline.data.packing.cityscapes_tree import Picture
from pipeline.data.packing.shard_writer import TEMPORARY, file_sha256, write_file

RECORD_NAME = "packing.jsonl"


@dataclass(frozen=True)
class Source:
    """A tree and the options it is packed with, by two hashes."""

    seen: str
    content: str


@dataclass(frozen=True)
class PackingRecord:
    """The source of a folder's shards, and those that were finished, by name."""

    source: Source
    shards: dict[str, ShardEntry] = field(default_factory=dict)


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


def read_record(out: Path) -> PackingRecord | None:
    """The record in a folder, or None; a last line that was cut short is left out."""
    path = out / RECORD_NAME
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
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


def write_record(out: Path, record: PackingRecord) -> None:
    """Writes the record, whole."""
    lines = [asdict(record.source), *map(asdict, record.shards.values())]
    write_file(out / RECORD_NAME, "".join(json.dumps(line) + "\n" for line in lines).encode())


def is_whole(out: Path, shard: ShardEntry) -> bool:
    """True where a finished shard and its index are still as they were written."""
    pairs = ((shard.name, shard.sha256), (index_name(shard.name), shard.index_sha256))
    return all((out / name).is_file() and file_sha256(out / name) == digest for name, digest in pairs)


def remove_shards(out: Path, splits: Sequence[str], keep: set[str]) -> None:
    """Removes what an earlier, unfinished packing left in the splits' folders, but for the shards to keep."""
    kept = keep | {index_name(name) for name in keep}
    for split in splits:
        for pattern in (f"{split}-*.tar", f"{split}-*.index.jsonl", f"{split}-*{TEMPORARY}"):
            for path in (out / split).glob(pattern):
                if f"{split}/{path.name}" not in kept:
                    path.unlink()
