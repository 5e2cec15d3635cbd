"""A tree in Cityscapes' layout → WebDataset shards with a manifest.

The whole tree is scanned, decoded and compared before a byte is written, so a bad tree costs one clear
line and leaves nothing behind. The same tree gives the same bytes and the same manifest id. The
manifest is written last: until then there is no data set at `out`, and running again goes on with the
shards that are whole; once it is there, running again on the same tree changes nothing.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.labels import CITYSCAPES, ClassTable
from pipeline.data.manifest import (
    FORMAT,
    MANIFEST_NAME,
    Manifest,
    ShardEntry,
    Split,
    load_manifest,
    make_manifest,
    manifest_text,
)
from pipeline.data.packing.cityscapes_tree import Picture, find_pictures, hash_pictures, scan_pictures
from pipeline.data.packing.record import (
    PackingRecord,
    Source,
    content_hash,
    is_whole,
    read_record,
    remove_shards,
    seen_hash,
    write_record,
)
from pipeline.data.packing.shard_writer import write_file, write_shard
from pipeline.errors import ConfigError, DatasetError, WorldStateError

_LOG = logging.getLogger(__name__)
_BYTES_A_SAMPLE = 4096
"""Tar headers, padding and index lines of a sample, at most."""


@dataclass(frozen=True)
class PackReport:
    """What lies at `out` afterwards; `refused` is 0, as a tree with anything to refuse is not packed."""

    samples: int
    shards: int
    bytes: int
    manifest_id: str
    refused: int = 0


def pack_cityscapes(
    root: str,
    out: str,
    splits: Sequence[str] = ("train", "val"),
    classes: ClassTable = CITYSCAPES,
    samples_per_shard: int = 1000,
    bytes_per_shard: int = 256 * 2**20,
) -> PackReport:
    """Packs a tree into the folder `out`, or finds that it is packed already.

    Raises TreeError (a DatasetError) for a bad tree, DatasetError for an `out` that holds something
    else, WorldStateError where there is no space, the disk refuses, or another process is packing there.
    """
    folder = _folder(out)
    splits = tuple(dict.fromkeys(splits))
    pictures = find_pictures(Path(root), splits)
    options = [FORMAT, list(splits), classes.to_dict(), samples_per_shard, bytes_per_shard]
    record = _record_of(folder, pictures, options, root)
    finished = load_manifest(out) if record and (folder / MANIFEST_NAME).is_file() else None
    if record and finished and all(_same_size(folder, shard) for shard in _shards(finished)):
        _LOG.info("[pack] %s holds this tree already; nothing to do", out)
        return _report(finished)
    if record is None:
        _LOG.info("[pack] checking %d pictures and labels of %s", len(pictures), root)
        digests = scan_pictures(pictures, classes)
        source = Source(seen_hash(pictures, options), content_hash(pictures, digests, options))
        record = PackingRecord(source)
    plan = plan_shards(pictures, samples_per_shard, bytes_per_shard)
    _refuse_no_space(folder, plan, record)
    with _only_packer(folder):
        manifest = _write(folder, plan, record, classes, splits)
    return _report(manifest)


def plan_shards(
    pictures: Sequence[Picture], samples_per_shard: int, bytes_per_shard: int
) -> dict[str, tuple[Picture, ...]]:
    """Shard name → its pictures, in their order; a shard has at least one, and keeps to both limits."""
    plan: dict[str, list[Picture]] = {}
    shards_of: dict[str, int] = {}
    room = 0
    for picture in pictures:
        size = picture.image.stat().st_size + picture.label.stat().st_size
        name = f"{picture.split}/{picture.split}-{shards_of.get(picture.split, 0) - 1:06d}.tar"
        if picture.split not in shards_of or len(plan[name]) >= samples_per_shard or size > room:
            number = shards_of.get(picture.split, 0)
            shards_of[picture.split] = number + 1
            name = f"{picture.split}/{picture.split}-{number:06d}.tar"
            plan[name], room = [], bytes_per_shard
        plan[name].append(picture)
        room -= size
    return {name: tuple(members) for name, members in plan.items()}


def _folder(out: str) -> Path:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", out):
        raise ConfigError(f"cannot pack to {out}: this version writes local folders only; type a path")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise DatasetError(f"{out} is a file; --out takes a folder that is new, empty or packed before")
    return folder


def _record_of(
    folder: Path, pictures: Sequence[Picture], options: Sequence[object], root: str
) -> PackingRecord | None:
    """The record of an earlier packing of this very tree, else None; refuses a folder that is not ours."""
    record = read_record(folder)
    if record is not None:
        if record.source.seen == seen_hash(pictures, options):
            return record
        if record.source.content == content_hash(pictures, hash_pictures(pictures), options):
            return record
    if (folder / MANIFEST_NAME).is_file():
        raise DatasetError(
            f"{folder} holds another data set, or {root} (or the options) changed since it was packed; "
            "take another --out, or remove that folder and run again"
        )
    if record is None and folder.is_dir() and any(folder.iterdir()):
        inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:4])
        raise DatasetError(f"{folder} is not empty (it has {inside}); --out takes a new or empty folder")
    return None


def _write(
    folder: Path,
    plan: dict[str, tuple[Picture, ...]],
    record: PackingRecord,
    classes: ClassTable,
    splits: Sequence[str],
) -> Manifest:
    """Writes the shards that are not whole yet, then the manifest."""
    (folder / MANIFEST_NAME).unlink(missing_ok=True)  # a damaged data set stops being one while it is mended
    done = {name: shard for name, shard in record.shards.items() if name in plan and is_whole(folder, shard)}
    if done:
        _LOG.info("[pack] going on after %d of %d shards", len(done), len(plan))
    remove_shards(folder, splits, keep=set(done))
    record = PackingRecord(record.source, done)
    write_record(folder, record)
    for name, pictures in plan.items():
        if name not in done:
            record.shards[name] = write_shard(folder, name, pictures, classes)
            write_record(folder, record)
            _LOG.info("[pack] %s: %d samples", name, len(pictures))
    manifest = make_manifest(
        classes,
        {
            split: Split(split, tuple(record.shards[name] for name in plan if name.startswith(f"{split}/")))
            for split in splits
        },
    )
    write_file(folder / MANIFEST_NAME, manifest_text(manifest).encode())
    return manifest


def _refuse_no_space(folder: Path, plan: dict[str, tuple[Picture, ...]], record: PackingRecord) -> None:
    needed = sum(
        picture.image.stat().st_size + picture.label.stat().st_size + _BYTES_A_SAMPLE
        for name, pictures in plan.items()
        if name not in record.shards
        for picture in pictures
    )
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise WorldStateError(
            f"no space for {needed / 1e9:.2f} GB of shards at {folder}: {free / 1e9:.2f} GB are free; "
            "free some, or take another --out"
        )


@contextmanager
def _only_packer(folder: Path) -> Iterator[None]:
    """Holds the folder, made where it is not there, against a second process that would pack into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise WorldStateError(f"cannot make {folder}: {error.strerror}; take another --out") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise WorldStateError(f"another process is packing into {folder}; wait for it to end") from error
    finally:
        os.close(descriptor)


def _same_size(folder: Path, shard: ShardEntry) -> bool:
    path = folder / shard.name
    return path.is_file() and path.stat().st_size == shard.bytes


def _shards(manifest: Manifest) -> Iterator[ShardEntry]:
    for split in manifest.splits.values():
        yield from split.shards


def _report(manifest: Manifest) -> PackReport:
    shards = tuple(_shards(manifest))
    return PackReport(
        sum(shard.samples for shard in shards), len(shards), sum(shard.bytes for shard in shards), manifest.id
    )
