"""One shard: a plain WebDataset tar and its index, whole or not there at all.

Times and owners in the tar are fixed, so equal samples give equal bytes, whoever writes them.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pipeline.data.decode import Header
from pipeline.data.index import Member, SampleEntry, index_text
from pipeline.data.packing.codec import encode_image, encode_label
from pipeline.data.packing.label_file import decode_label_ids
from pipeline.data.packing.output import Output, write_whole
from pipeline.data.packing.parallel import windowed
from pipeline.data.packing.pictures import Picture, read_file
from pipeline.data.packing.shard_plan import PackOptions, ShardTask
from pipeline.data.shard_table import ShardEntry, index_name, sha256_hex
from pipeline.disk import file_sha256

_THREADS = 2
"""Pictures encoded side by side, which matters where the shards are fewer than the cores."""
_SUFFIX = {"png": "png", "jpeg": "jpg"}


def write_shard(task: ShardTask, output: Output, options: PackOptions) -> ShardEntry:
    """The manifest's entry of the shard that was written, with its index.

    Raises WorldStateError where the disk or the server refuses, DatasetError where a file changed since
    it was scanned.
    """
    with output.making(task.name) as path:
        entries = _write_tar(path, task.pictures, options)
        index = index_text(entries).encode()
        write_whole(output, index_name(task.name), index)
        num_bytes, digest = path.stat().st_size, file_sha256(path)
    return ShardEntry(task.name, len(entries), num_bytes, digest, sha256_hex(index))


def _write_tar(path: Path, pictures: Sequence[Picture], options: PackOptions) -> tuple[SampleEntry, ...]:
    entries: list[SampleEntry] = []
    with (
        tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar,
        ThreadPoolExecutor(_THREADS) as pool,
    ):
        encoded = windowed(pool, partial(_encode, options=options), pictures, 2 * _THREADS)
        for picture, (image, header, label) in zip(pictures, encoded, strict=True):
            image_name = f"{picture.key}.image.{_SUFFIX[header.codec]}"
            members = (
                _add(tar, image_name, header.codec, image),
                _add(tar, f"{picture.key}.label.png", "png", label),
            )
            entries.append(SampleEntry(picture.key, header.height, header.width, *members))
    return tuple(entries)


def _add(tar: tarfile.TarFile, name: str, codec: str, data: bytes) -> Member:
    """The index's view of a member that was added, byte for byte as webdataset's own writer adds it.

    That one imports torch, which takes seconds and 200 MB in every packing process.
    """
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o444, 0
    tar.addfile(member, io.BytesIO(data))
    padded = len(data) + -len(data) % tarfile.BLOCKSIZE
    return Member(codec, tar.offset - padded, len(data), zlib.crc32(data))


def _encode(picture: Picture, options: PackOptions) -> tuple[bytes, Header, bytes]:
    """The image to store with its header, and the label."""
    image, header = encode_image(read_file(picture.image), options.codec, str(picture.image))
    name = str(picture.label)
    label_HW = decode_label_ids(read_file(picture.label), name, options.palette)
    return image, header, encode_label(options.classes.to_train_ids(label_HW), name)
