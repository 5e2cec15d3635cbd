"""Label files of other people: grey PNGs of ids, and, where a person says so, palette PNGs."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from pipeline.data.decode import decode_gray
from pipeline.errors import DatasetError

_HEADER = struct.Struct(">IIBBBBB")
_HEADER_AT, _HEADER_END = 16, 33
_GREY, _PALETTE = 0, 3
_COLOURS_ONLY = (b"PLTE", b"tRNS", b"bKGD", b"hIST", b"sBIT", b"cICP", b"iCCP")
"""Chunks that mean something to a palette picture, or to colours, alone."""


def decode_label_ids(data: bytes, name: str, palette: bool) -> NDArray[np.uint8]:
    """The label ids (H, W) uint8 in a label file; raises DatasetError naming `name`.

    With `palette` the indices of an 8-bit palette PNG are ids too, whatever colours they stand for.
    """
    if is_palette_png(data):
        if not palette:
            raise DatasetError(
                f"{name} is a palette PNG, not an 8-bit single-channel PNG: its indices may be ids or mere "
                "colours; if they are ids, pack with jobs/pack_folder.py --palette, else save the label as "
                "8-bit grey PNG"
            )
        data = _indices_as_grey(data, name)
    return decode_gray(data, name)


def is_palette_png(data: bytes) -> bool:
    """True where the header of a PNG says that its pixels are indices of a palette."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR" and data[25:26] == bytes([_PALETTE])


def _indices_as_grey(data: bytes, name: str) -> bytes:
    """The same picture as a grey PNG whose grey values are the indices; no decoder shows those itself."""
    width, height, depth, _, *rest = _HEADER.unpack_from(data, _HEADER_AT)
    if depth != 8:
        raise DatasetError(
            f"{name} is a palette PNG of {depth} bits; save the label as 8-bit grey PNG of label ids"
        )
    header = b"IHDR" + _HEADER.pack(width, height, depth, _GREY, *rest)
    parts = [data[:12], header, zlib.crc32(header).to_bytes(4, "big")]
    at = _HEADER_END
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] not in _COLOURS_ONLY:
            parts.append(data[at:end])
        at = end
    return b"".join(parts)
