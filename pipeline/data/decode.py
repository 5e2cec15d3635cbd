"""Bytes → pixels, for the two codecs that are allowed, with the header read before anything is decoded.

The header gives the size, so that a picture too large for memory and a picture of another size than
its index says are refused for the price of a few bytes. Images become RGB uint8 whatever they were
(grey, palette, alpha, 16 bits); a label must be what it claims to be, as any conversion would change
ids. An orientation tag is ignored: labels are drawn on the stored grid.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.index import Member, SampleEntry
from pipeline.errors import DatasetError, SampleError

MAX_PIXELS = 2**27
"""Largest picture that is decoded (a 16384x8192 one): 400 MB as RGB."""

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD8)})
"""Markers of no length."""
_IMAGE = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself before it is decoded; `grey` means one channel and no palette."""

    codec: str
    height: int
    width: int
    bit_depth: int
    grey: bool


def read_header(data: bytes, name: str) -> Header:
    """The header of a PNG or JPEG; raises DatasetError naming `name` for anything else."""
    header = _png_header(data) if data.startswith(_PNG) else _jpeg_header(data)
    if header is None:
        raise DatasetError(f"{name} is neither a whole PNG nor a whole JPEG; save it again as one of them")
    if header.height * header.width == 0 or header.height * header.width > MAX_PIXELS:
        raise DatasetError(
            f"{name} claims {header.height}x{header.width} pixels; 1 to {MAX_PIXELS} are decoded"
        )
    return header


def decode_rgb(data: bytes, name: str) -> NDArray[np.uint8]:
    """The RGB picture (H, W, 3) uint8 in a PNG or JPEG; raises DatasetError naming `name`."""
    return _decode(data, _IMAGE, read_header(data, name), name)


def decode_gray(data: bytes, name: str) -> NDArray[np.uint8]:
    """The single plane (H, W) uint8 of an 8-bit grey PNG, unchanged; raises DatasetError naming `name`."""
    header = read_header(data, name)
    if header.codec != "png" or not header.grey or header.bit_depth != 8:
        raise DatasetError(
            f"{name} is not an 8-bit single-channel PNG (a palette, colour or {header.bit_depth}-bit "
            f"{header.codec}?), so its ids cannot be trusted; save the label as 8-bit grey PNG"
        )
    picture = _decode(data, cv2.IMREAD_UNCHANGED, header, name)
    if picture.ndim != 2:  # a transparency chunk makes OpenCV add channels
        raise DatasetError(f"{name} has transparency; save the label as plain 8-bit grey PNG")
    return picture


def refuse_broken_png(data: bytes, name: str) -> None:
    """Raises DatasetError where a PNG's chunks are cut short or differ from their CRC.

    Decoders disagree on how much of a broken file they show, so this is asked before one is tried.
    Anything that is not a PNG passes.
    """
    at = len(_PNG)
    while data.startswith(_PNG):
        length = int.from_bytes(data[at : at + 4], "big")
        kind, end = data[at + 4 : at + 8], at + 8 + length
        if len(data) < end + 4:
            raise DatasetError(f"{name} is a broken PNG: cut short after {len(data)} bytes; replace it")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise DatasetError(
                f"{name} is a broken PNG: the bytes from {at} differ from their CRC; replace it"
            )
        if kind == b"IEND":
            return
        at = end + 4


def decode_image(data: bytes, entry: SampleEntry, shard: str) -> NDArray[np.uint8]:
    """A sample's image, RGB uint8 (H, W, 3); raises SampleError naming shard, key and offset."""
    return _decode_member(data, entry, entry.image, shard)


def decode_label(data: bytes, entry: SampleEntry, shard: str) -> NDArray[np.uint8]:
    """A sample's train ids, uint8 (H, W); raises SampleError naming shard, key and offset."""
    return _decode_member(data, entry, entry.label, shard)


def refuse_other_header(data: bytes, entry: SampleEntry, member: Member, where: str) -> None:
    """Raises SampleError where the codec or size in a picture's first bytes are not those of its index.

    DatasetError where they are no picture's.
    """
    header = read_header(data, where)
    if (header.codec, header.height, header.width) != (member.codec, entry.height, entry.width):
        raise SampleError(
            f"{where} is a {header.codec} of {header.height}x{header.width} pixels; its index says "
            f"{member.codec} of {entry.height}x{entry.width}; pack again"
        )


def place(shard: str, entry: SampleEntry, member: Member) -> str:
    """How an error names a member: shard, key, kind and offset."""
    kind = "image" if member is entry.image else "label"
    return f"{shard}: {kind} of {entry.key!r} at offset {member.offset}"


def _decode_member(data: bytes, entry: SampleEntry, member: Member, shard: str) -> NDArray[np.uint8]:
    where = place(shard, entry, member)
    try:
        refuse_other_header(data, entry, member, where)
        return decode_rgb(data, where) if member is entry.image else decode_gray(data, where)
    except DatasetError as error:
        raise SampleError(str(error)) from error


def _decode(data: bytes, flags: int, header: Header, name: str) -> NDArray[np.uint8]:
    try:
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        picture = None
    size = (header.height, header.width)  # a hostile file may tell decoders another one than us
    if picture is None or picture.dtype != np.uint8 or picture.shape[:2] != size:
        raise DatasetError(f"{name} is broken: its header is sound but it cannot be decoded; replace it")
    return np.asarray(picture, np.uint8)


def _png_header(data: bytes) -> Header | None:
    if len(data) < 26 or data[12:16] != b"IHDR":
        return None
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return Header("png", height, width, bit_depth=data[24], grey=data[25] == 0)


def _jpeg_header(data: bytes) -> Header | None:
    """Walks the segments up to the frame header; the entropy-coded data come after it."""
    at = 2
    while data.startswith(b"\xff\xd8") and at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _JPEG_BARE:
            at += 2
        elif marker in _JPEG_FRAMES:
            height = int.from_bytes(data[at + 5 : at + 7], "big")
            width = int.from_bytes(data[at + 7 : at + 9], "big")
            return Header("jpeg", height, width, bit_depth=data[at + 4], grey=data[at + 9] == 1)
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
