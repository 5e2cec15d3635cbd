"""Pictures and labels → WebDataset shards with a manifest.

The whole tree is scanned, decoded and compared before a byte is written, so a bad tree costs one clear
line and leaves nothing behind. The same tree and options give the same bytes and the same manifest id,
whatever works on it. The manifest is written last: until then there is no data set at `out`, and
running again goes on with the shards that are whole; once it is there, running again on the same tree
changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.data.labels import CITYSCAPES
from pipeline.data.manifest import (
    FORMAT,
    MANIFEST_NAME,
    Manifest,
    Split,
    load_manifest,
    make_manifest,
    manifest_text,
)
from pipeline.data.packing.cityscapes_tree import find_pictures
from pipeline.data.packing.codec import parse_codec
from pipeline.data.packing.folder_tree import find_pairs
from pipeline.data.packing.output import TEMPORARY, LocalOutput, Output, open_output, write_whole
from pipeline.data.packing.parallel import MapTasks, in_turn
from pipeline.data.packing.pictures import Picture, hash_pictures, scan_pictures
from pipeline.data.packing.progress import Progress
from pipeline.data.packing.record import (
    PackingRecord,
    RecordKeeper,
    Source,
    content_hash,
    read_record,
    remove_other_shards,
    seen_hash,
    whole_shards,
)
from pipeline.data.packing.shard_plan import (
    PackOptions,
    ShardTask,
    plan_shards,
    refuse_no_space,
    refuse_unwritable,
)
from pipeline.data.packing.shard_writer import write_shard
from pipeline.data.shard_table import ShardEntry, ShardTable
from pipeline.errors import ConfigError, DatasetError, WorldStateError

_LOG = logging.getLogger(__name__)


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
    codec: str = "striped",
    samples_per_shard: int = PackOptions.samples_per_shard,
    bytes_per_shard: int = PackOptions.bytes_per_shard,
    map_tasks: MapTasks = in_turn,
) -> PackReport:
    """Packs a tree in Cityscapes' layout; see `pack_pictures`."""
    options = PackOptions(
        CITYSCAPES, parse_codec(codec), samples_per_shard=samples_per_shard, bytes_per_shard=bytes_per_shard
    )
    output = open_output(out)
    pictures = find_pictures(Path(root), tuple(dict.fromkeys(splits)))
    _refuse_inside(output, root)
    return pack_pictures(pictures, root, output, options, map_tasks)


def pack_folder(
    images: str,
    labels: str,
    out: str,
    options: PackOptions,
    split: str = "",
    map_tasks: MapTasks = in_turn,
) -> PackReport:
    """Packs a folder of images and one of labels; see `find_pairs` and `pack_pictures`."""
    output = open_output(out)
    pictures = find_pairs(Path(images), Path(labels), split)
    _refuse_inside(output, images, labels)
    return pack_pictures(pictures, images, output, options, map_tasks)


def pack_pictures(
    pictures: Sequence[Picture], source: str, output: Output, options: PackOptions, map_tasks: MapTasks
) -> PackReport:
    """Packs pictures, or finds that they are packed already; `source` is what errors call them.

    Raises TreeError (a DatasetError) for bad pictures, DatasetError for an output that holds something
    else, WorldStateError where there is no space, the disk refuses, or another process is packing there.
    """
    described, found = _described(options, pictures), read_record(output)
    record = _record_of(output, found, pictures, described, source, map_tasks)
    finished = load_manifest(output.root) if record and output.size(MANIFEST_NAME) >= 0 else None
    if record and finished and all(output.size(shard.name) == shard.bytes for shard in _shards(finished)):
        _LOG.info("[pack] %s holds this tree already; nothing to do", output.root)
        return _report(finished)
    refuse_unwritable(output)
    if record is None:
        _LOG.info("[pack] checking %d pictures and labels of %s", len(pictures), source)
        digests = scan_pictures(pictures, options.classes, options.palette, map_tasks)
        record = PackingRecord(
            Source(seen_hash(pictures, described), content_hash(pictures, digests, described))
        )
    tasks = plan_shards(pictures, options.samples_per_shard, options.bytes_per_shard)
    missing = [task for task in tasks if task.name not in record.shards]
    refuse_no_space(output, missing, options.codec)
    with output.only_packer():
        _refuse_changed(output, found)
        manifest = _write(output, tasks, record, options, map_tasks)
    return _report(manifest)


def _refuse_inside(output: Output, *sources: str) -> None:
    """Raises ConfigError for an output that lies in a folder that is packed."""
    for source in sources if isinstance(output, LocalOutput) else ():
        if Path(output.root).resolve().is_relative_to(Path(source).resolve()):
            raise ConfigError(
                f"--out {output.root} lies in {source}, which is packed; take a folder beside it"
            )


def _described(options: PackOptions, pictures: Sequence[Picture]) -> list[object]:
    """All that the shards depend on beside the pictures' bytes, as JSON values."""
    splits = list(dict.fromkeys(picture.split for picture in pictures))
    limits = [options.samples_per_shard, options.bytes_per_shard]
    return [FORMAT, splits, options.classes.to_dict(), *limits, str(options.codec), options.palette]


def _record_of(
    output: Output,
    record: PackingRecord | None,
    pictures: Sequence[Picture],
    described: Sequence[object],
    source: str,
    map_tasks: MapTasks,
) -> PackingRecord | None:
    """The record where it is one of these very pictures, else None; refuses an output not ours."""
    if record is not None:
        if record.source.seen == seen_hash(pictures, described):
            return record
        if record.source.content == content_hash(pictures, hash_pictures(pictures, map_tasks), described):
            return record
    root = output.root
    if output.size(MANIFEST_NAME) >= 0:
        raise DatasetError(
            f"{root} holds another data set, or {source} (or the options) changed since it was packed; "
            "take another --out, or remove that one and run again"
        )
    if record is None and isinstance(output, LocalOutput) and output.folder.is_dir():
        inside = sorted(e.name for e in output.folder.iterdir() if not e.name.endswith(TEMPORARY))
        if inside:
            raise DatasetError(
                f"{root} is not empty (it has {', '.join(inside[:4])}); --out takes a new or empty folder"
            )
    return None


def _write(
    output: Output,
    tasks: Sequence[ShardTask],
    record: PackingRecord,
    options: PackOptions,
    map_tasks: MapTasks,
) -> Manifest:
    """Writes the shards that are not whole yet, then the manifest."""
    if isinstance(output, LocalOutput):  # a damaged data set stops being one while it is mended
        (output.folder / MANIFEST_NAME).unlink(missing_ok=True)
    names = {task.name for task in tasks}
    done = {name: shard for name, shard in whole_shards(output, record).items() if name in names}
    if done:
        _LOG.info("[pack] going on after %d of %d shards", len(done), len(tasks))
    splits = tuple(dict.fromkeys(picture.split for task in tasks for picture in task.pictures))
    remove_other_shards(output, splits, keep=set(done))
    keeper = RecordKeeper(output, PackingRecord(record.source, done))
    before = sum(shard.samples for shard in done.values())
    progress = Progress("packed", sum(len(task.pictures) for task in tasks), before)
    missing = [task for task in tasks if task.name not in done]
    for shard in map_tasks(partial(write_shard, output=output, options=options), missing):
        _refuse_unseen(output, shard)
        keeper.add(shard)
        progress.done(shard.samples)
    keeper.close()
    entries = [done[task.name] for task in tasks]
    by_split = {s: Split(s, ShardTable(e for e in entries if e.name.startswith(f"{s}/"))) for s in splits}
    manifest = make_manifest(options.classes, by_split)
    write_whole(output, MANIFEST_NAME, manifest_text(manifest).encode())
    return manifest


def _refuse_changed(output: Output, found: PackingRecord | None) -> None:
    """Raises WorldStateError where another packer was at work since the record was read: its shards stay."""
    if read_record(output) != found:
        raise WorldStateError(
            f"another process has packed into {output.root} meanwhile; run the same command again to go on, "
            "or take another --out"
        )


def _refuse_unseen(output: Output, shard: ShardEntry) -> None:
    """Raises WorldStateError where a shard that somebody wrote is not found from here."""
    size = output.size(shard.name)
    if size != shard.bytes:
        raise WorldStateError(
            f"{output.root}/{shard.name} was written with {shard.bytes} bytes and has {max(size, 0)} here; "
            "on a cluster --out must be on a file system that all nodes mount, or an address"
        )


def _shards(manifest: Manifest) -> Iterator[ShardEntry]:
    for split in manifest.splits.values():
        yield from split.shards


def _report(manifest: Manifest) -> PackReport:
    shards = tuple(_shards(manifest))
    return PackReport(
        sum(shard.samples for shard in shards), len(shards), sum(shard.bytes for shard in shards), manifest.id
    )
