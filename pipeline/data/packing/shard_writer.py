"""One shard: a plain WebDataset tar and its index, whole or not there at all.

Times and owners in the tar are fixed, so equal samples give equal bytes, whoever writes them.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.data.decode import Header
from pipeline.data.manifest import Member, SampleEntry, ShardEntry, index_name, index_text, sha256_hex
from pipeline.data.packing.codec import encode_image, encode_label
from pipeline.data.packing.label_file import decode_label_ids
from pipeline.data.packing.output import Output, file_sha256, write_whole
from pipeline.data.packing.parallel import windowed
from pipeline.data.packing.pictures import Picture, read_file
from pipeline.data.packing.shard_plan import PackOptions, ShardTask

_THREADS = 2
"""Pictures encoded side by side, which matters where the shards are fewer than the cores."""
_SUFFIX = {"png": "png", "jpeg": "jpg"}


@dataclass(frozen=True)
class _Packed:
    """What is known of a sample before the tar says where its members lie."""

    key: str
    header: Header
    names: tuple[str, str]
    crc32s: tuple[int, int]


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
    from webdataset import ShardWriter  # noqa: PLC0415 - needed to pack, not to read

    packed: list[_Packed] = []
    with path.open("wb") as file, ShardWriter(
        "%06d", maxcount=len(pictures) + 1, maxsize=float("inf"), verbose=0, opener=lambda _: file,
        encoder=False, mtime=0, user="", group="",
    ) as writer, ThreadPoolExecutor(_THREADS) as pool:  # fmt: skip
        encoded = windowed(pool, partial(_encode, options=options), pictures, 2 * _THREADS)
        for picture, (image, header, label) in zip(pictures, encoded, strict=True):
            names = (f"image.{_SUFFIX[header.codec]}", "label.png")
            writer.write({"__key__": picture.key, names[0]: image, names[1]: label})
            packed.append(_Packed(picture.key, header, names, (zlib.crc32(image), zlib.crc32(label))))
    with tarfile.open(path, "r:") as tar:
        places = {member.name: (member.offset_data, member.size) for member in tar}
    return tuple(_entry(sample, places) for sample in packed)


def _entry(sample: _Packed, places: Mapping[str, tuple[int, int]]) -> SampleEntry:
    image, label = (
        Member(codec, *places[f"{sample.key}.{name}"], crc32)
        for codec, name, crc32 in zip((sample.header.codec, "png"), sample.names, sample.crc32s, strict=True)
    )
    return SampleEntry(sample.key, sample.header.height, sample.header.width, image, label)


def _encode(picture: Picture, options: PackOptions) -> tuple[bytes, Header, bytes]:
    """The image to store with its header, and the label."""
    image, header = encode_image(read_file(picture.image), options.codec, str(picture.image))
    name = str(picture.label)
    label_HW = decode_label_ids(read_file(picture.label), name, options.palette)
    return image, header, encode_label(options.classes.to_train_ids(label_HW), name)
