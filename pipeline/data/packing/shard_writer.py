"""One shard on disk: a plain WebDataset tar and its index, whole or not there at all.

Times and owners in the tar are fixed, so equal samples give equal bytes. Files get their names only
when they are complete and on the disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2

from pipeline.data.decode import Header, decode_gray, read_header
from pipeline.data.labels import ClassTable
from pipeline.data.manifest import Member, SampleEntry, ShardEntry, index_name, index_text, sha256_hex
from pipeline.data.packing.cityscapes_tree import Picture, read_file
from pipeline.errors import WorldStateError

TEMPORARY = ".partial"
"""Suffix of files that are being written."""
_SUFFIX = {"png": "png", "jpeg": "jpg"}


@dataclass(frozen=True)
class _Packed:
    """What is known of a sample before the tar says where its members lie."""

    key: str
    header: Header
    names: tuple[str, str]
    crc32s: tuple[int, int]


def write_shard(out: Path, name: str, pictures: Sequence[Picture], classes: ClassTable) -> ShardEntry:
    """The manifest's entry of the shard that was written, with its index, under `out`.

    Images keep their bytes; labels become PNGs of train ids. Raises WorldStateError where the disk
    refuses, DatasetError where a file changed since it was scanned.
    """
    path = out / name
    with atomic(path) as partial:
        entries = _write_tar(partial, pictures, classes)
        index = index_text(entries).encode()
        write_file(out / index_name(name), index)
        num_bytes = partial.stat().st_size
        digest = file_sha256(partial)
    return ShardEntry(name, len(entries), num_bytes, digest, sha256_hex(index))


def write_file(path: Path, data: bytes) -> None:
    """Writes a file so that it is either whole or not there."""
    with atomic(path) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path that becomes `path`, on the disk, when the block ends well, and vanishes otherwise.

    Raises WorldStateError naming the path where the disk refuses.
    """
    partial = path.with_name(path.name + TEMPORARY)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise WorldStateError(
            f"cannot write {path}: {error.strerror}; free the space or the folder, or take another --out, "
            "and run again"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """The file's sha256, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_tar(path: Path, pictures: Sequence[Picture], classes: ClassTable) -> tuple[SampleEntry, ...]:
    from webdataset import ShardWriter  # noqa: PLC0415 - needed to pack, not to read

    packed: list[_Packed] = []
    with path.open("wb") as file, ShardWriter(
        "%06d", maxcount=len(pictures) + 1, maxsize=float("inf"), verbose=0, opener=lambda _: file,
        encoder=False, mtime=0, user="", group="",
    ) as writer:  # fmt: skip
        for picture in pictures:
            image, label = read_file(picture.image), _train_id_png(picture, classes)
            header = read_header(image, str(picture.image))
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


def _train_id_png(picture: Picture, classes: ClassTable) -> bytes:
    train_HW = classes.to_train_ids(decode_gray(read_file(picture.label), str(picture.label)))
    done, data = cv2.imencode(".png", train_HW, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done, picture.label
    return data.tobytes()


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
