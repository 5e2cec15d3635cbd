"""A manifest and indexes for WebDataset shards that are there already; the tars stay as they are.

Labels must be 8-bit grey PNGs of train ids, which is to say that the class table's ids are 0, 1, … in
order, and 255 is ignored: shards of anything else have to be packed from their source. Every member is
read once; every label is decoded, every image's header and checksums are looked at.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.data.decode import Header, decode_gray, read_header, refuse_broken_png
from pipeline.data.index import Member, SampleEntry, index_text
from pipeline.data.labels import IGNORE, ClassTable, foreign_train_ids
from pipeline.data.manifest import MANIFEST_NAME, Manifest, Split, make_manifest, manifest_text
from pipeline.data.packing.output import open_output, write_whole
from pipeline.data.packing.parallel import MapTasks
from pipeline.data.packing.shard_names import SplitFrom, find_tars, split_of
from pipeline.data.packing.tar_samples import MemberNames, TarSample, read_samples
from pipeline.data.packing.tar_stream import TarStream, originals
from pipeline.data.shard_table import ShardEntry, ShardTable, index_name, sha256_hex
from pipeline.errors import ConfigError, DatasetError, ShardError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexOptions:
    """How the members of foreign shards are meant."""

    classes: ClassTable
    names: MemberNames = MemberNames()  # noqa: RUF009 - frozen
    split: str = ""
    """Split that all shards belong to; without it their folder, or their name, says it."""
    split_from: SplitFrom = "folder"
    """What names the split: `train/x.tar`, or `train-000000.tar`."""


@dataclass(frozen=True)
class Scanned:
    """A shard that was read, or what is wrong with it."""

    entry: ShardEntry | None = None
    index: bytes = b""
    problem: str = ""


def index_shards(root: str, tars: Sequence[str], options: IndexOptions, map_tasks: MapTasks) -> Manifest:
    """Writes indexes beside the tars and the manifest at the root, and returns it.

    `tars` are names below the root; none means all *.tar of a folder. Raises ShardError with the first
    problem and their number, and then nothing was written.
    """
    refuse_other_ids(options.classes)
    output = open_output(root)
    if output.size(MANIFEST_NAME) >= 0:
        raise ShardError(
            f"{root} has a {MANIFEST_NAME} already; audit it with python jobs/shards.py verify {root}, or "
            "remove it to index again"
        )
    names = list(tars) or find_tars(root)
    splits = {name: split_of(name, options.split, options.split_from) for name in names}
    scan = partial(scan_tar, root=root, classes=options.classes, names=options.names)
    scanned: list[Scanned] = []
    for result in map_tasks(scan, names):
        scanned.append(result)
        if result.entry:
            _LOG.info("[index] %s: %d samples", result.entry.name, result.entry.samples)
    _refuse(scanned)
    entries = [result.entry for result in scanned if result.entry]
    _refuse_copies(root, entries)
    if not any(entry.samples for entry in entries):
        raise ShardError(
            f"{root}: there is no sample in {len(entries)} shards (such as {names[0]}); remove them and pack "
            "the source, with jobs/pack_folder.py; nothing was written"
        )
    for entry, result in zip(entries, scanned, strict=True):
        write_whole(output, index_name(entry.name), result.index)
    by_split = {
        split: Split(split, ShardTable(entry for entry in entries if splits[entry.name] == split))
        for split in dict.fromkeys(splits.values())
    }
    manifest = make_manifest(options.classes, by_split)
    write_whole(output, MANIFEST_NAME, manifest_text(manifest).encode())
    return manifest


def scan_tar(name: str, root: str, classes: ClassTable, names: MemberNames) -> Scanned:
    """The entry and the index of one tar, or its first problem."""
    with originals(root) as store:
        try:
            stream = TarStream(store, name)
            entries = tuple(_entry(stream, sample, classes) for sample in read_samples(stream, names))
            index = index_text(entries).encode()
            entry = ShardEntry(name, len(entries), stream.num_bytes, stream.sha256(), sha256_hex(index))
        except ShardError as error:
            return Scanned(problem=str(error))
    return Scanned(entry, index)


def refuse_other_ids(classes: ClassTable) -> None:
    """Raises ConfigError for a class table whose label ids are not train ids."""
    train_ids = tuple(range(classes.num_classes))
    if classes.label_ids != train_ids or set(classes.ignored_label_ids) - {IGNORE}:
        raise ConfigError(
            f"the class table has the ids {list(classes.label_ids)[:8]}…, ignored "
            f"{list(classes.ignored_label_ids)[:8]}: labels in shards that are indexed as they are must hold "
            "0, 1, … in the order of the classes, and 255 where ignored; pack the source with "
            "jobs/pack_folder.py to have them converted"
        )


def _entry(stream: TarStream, sample: TarSample, classes: ClassTable) -> SampleEntry:
    where = [
        f"{stream.where}: {kind} of {sample.key!r} at offset {member.offset}"
        for kind, member in (("image", sample.image), ("label", sample.label))
    ]
    try:
        image = _checked_header(sample.image.data, where[0])
        label = _checked_header(sample.label.data, where[1])
        if (image.height, image.width) != (label.height, label.width):
            raise ShardError(
                f"{where[0]} has {image.height}x{image.width} pixels, its label "
                f"{label.height}x{label.width}; pack the source again"
            )
        label_HW = decode_gray(sample.label.data, where[1])
    except DatasetError as error:
        raise ShardError(str(error)) from error
    if foreign := foreign_train_ids(label_HW, classes.num_classes):
        raise ShardError(
            f"{where[1]} has the ids {foreign}, which are no train ids of {classes.num_classes} classes; "
            "pack the source with jobs/pack_folder.py to have ids converted"
        )
    members = (
        Member(header.codec, member.offset, len(member.data), zlib.crc32(member.data))
        for header, member in ((image, sample.image), (label, sample.label))
    )
    return SampleEntry(sample.key, image.height, image.width, *members)


def _checked_header(data: bytes, where: str) -> Header:
    header = read_header(data, where)
    refuse_broken_png(data, where)
    return header


def _refuse(scanned: Sequence[Scanned]) -> None:
    problems = [result.problem for result in scanned if result.problem]
    if problems:
        more = f" (and {len(problems) - 1} more shards)" if problems[1:] else ""
        raise ShardError(f"{problems[0]}{more}; nothing was written")


def _refuse_copies(root: str, entries: Sequence[ShardEntry]) -> None:
    """Raises ShardError where two shards are the same bytes: their samples would come twice an epoch."""
    by_digest: dict[str, str] = {}
    for entry in entries:
        other = by_digest.setdefault(entry.sha256, entry.name)
        if other != entry.name and entry.samples:
            raise ShardError(f"{root}: {entry.name} is a copy of {other}; remove one of them")
