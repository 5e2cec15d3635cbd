"""Striped PNG: a lossless picture whose crops cost only their own rows.

To every reader this is an ordinary 8-bit PNG, grey or RGB. Each IDAT chunk holds one strip of 64 rows,
and a zlib full flush ends every strip, so that any of them can be inflated without those before it.
Rows use the filters NONE and UP alone, which undo column by column, and the first row of a strip
leans on none above. The private chunk `stRP` (by its capitals: for decoders to ignore, and not to be
copied by editors, which would make it lie) holds version, filter, rows a strip and each strip's bytes,
so a crop is located from the first bytes of a file and read alone.

A crop is right or refused: the CRC of every chunk used is checked; the marker must agree with IHDR and
with the chunks; a strip must inflate from nothing before it to exactly its rows, with the filters that
the marker names, and end as a full flush ends. A failing CRC is a DatasetError. Anything else that
surprises gives None: the caller then decodes the whole picture with OpenCV.
"""

from __future__ import annotations

import functools
import itertools
import struct
import zlib
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DatasetError

STRIP_ROWS = 64
HEAD_BYTES = 1024
"""So many first bytes hold the marker of any picture up to 15,000 rows."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MARKER = b"stRP"
_VERSION = 1
_NONE, _UP = 0, 2
_MARKER_AT = 33  # after the signature and IHDR
_CHUNK_BYTES = 12  # what a chunk adds to its data: length, kind, CRC
_ZLIB_HEADER = b"\x78\x9c"
_FULL_FLUSH = b"\x00\x00\xff\xff"
_ADLER_BYTES = 4
_MOST_INFLATION = 1032
"""Deflate cannot expand further; what claims more is a bomb."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the strips of a striped PNG lie, from its checked first bytes."""

    height: int
    width: int
    channels: int
    filtered: bool
    strip_rows: int
    offsets: tuple[int, ...]
    """The first byte of each strip's chunk, and of the chunk after the last."""

    @property
    def num_bytes(self) -> int:
        """The whole file's."""
        return self.offsets[-1] + _CHUNK_BYTES

    def span(self, rows: slice) -> slice:
        """The bytes of the file that hold these rows; `rows` is not empty and inside the picture."""
        return slice(self.offsets[rows.start // self.strip_rows], self.offsets[self._end_strip(rows)])

    def decode(self, part: bytes | memoryview, rows: slice, columns: slice) -> NDArray[np.uint8] | None:
        """The region from the bytes of `span(rows)`: (h, w) or RGB (h, w, 3), or None where they surprise.

        Raises DatasetError where a strip differs from its CRC.
        """
        first, end = rows.start // self.strip_rows, self._end_strip(rows)
        left, right = columns.start * self.channels, columns.stop * self.channels
        picture = np.empty((rows.stop - rows.start, right - left), np.uint8)
        for strip in range(first, end):
            chunk = memoryview(part)[self.offsets[strip] - self.offsets[first] :]
            lines = self._inflate(strip, chunk[: self.offsets[strip + 1] - self.offsets[strip]])
            if lines is None:
                return None
            top = strip * self.strip_rows
            skipped = max(rows.start - top, 0)
            into = picture[max(top - rows.start, 0) : top + len(lines) - rows.start]
            _unfilter(lines[:, 1 + left : 1 + right], skipped, self.filtered, into)
        return picture.reshape(len(picture), -1, 3) if self.channels == 3 else picture

    def _end_strip(self, rows: slice) -> int:
        last: int = (rows.stop - 1) // self.strip_rows
        return last + 1

    def _inflate(self, strip: int, chunk: memoryview) -> NDArray[np.uint8] | None:
        """The filtered lines (rows, 1 + bytes) of one strip; None where its chunk is not as expected."""
        num_bytes = self.offsets[strip + 1] - self.offsets[strip]
        if len(chunk) != num_bytes or chunk[:8] != struct.pack(">I4s", num_bytes - _CHUNK_BYTES, b"IDAT"):
            return None
        _check_crc(chunk[4:-4], chunk[-4:])
        is_last = strip == len(self.offsets) - 2
        stride = 1 + self.width * self.channels
        num_lines = min(self.strip_rows, self.height - strip * self.strip_rows)
        begin = b"" if strip else _ZLIB_HEADER
        if chunk[8 : 8 + len(begin)] != begin:
            return None
        raw = _inflate_exactly(chunk[8 + len(begin) : -4], num_lines * stride, is_last)
        if raw is None:
            return None
        lines = np.frombuffer(raw, np.uint8).reshape(num_lines, stride)
        expected = _UP if self.filtered else _NONE
        if lines[0, 0] != _NONE or (lines[1:, 0] != expected).any():
            return None
        return lines


def encode(picture: NDArray[np.uint8], filtered: bool | None = None) -> bytes:
    """A striped PNG of a grey (H, W) or RGB (H, W, 3) picture; the same bytes for the same zlib.

    `filtered` says whether rows are stored as differences to those above: smaller for photographs,
    larger for labels. By default RGB is filtered and grey is not.
    """
    fits = picture.dtype == np.uint8 and (picture.ndim == 2 or picture.shape[2:] == (3,)) and picture.size
    if not fits:
        given = f"{picture.dtype} of shape {picture.shape}"
        raise ValueError(f"a striped PNG holds grey or RGB uint8 of at least one pixel, not {given}")
    height, width = picture.shape[:2]
    filtered = picture.ndim == 3 if filtered is None else filtered
    lines = np.ascontiguousarray(picture).reshape(height, -1)
    strips, adler = [], 1
    for top in range(0, height, STRIP_ROWS):
        raw = _filtered_lines(lines[top : top + STRIP_ROWS], filtered).tobytes()
        strips.append(_deflate(raw, filtered, is_last=top + STRIP_ROWS >= height))
        adler = zlib.adler32(raw, adler)
    strips[0] = _ZLIB_HEADER + strips[0]
    strips[-1] += struct.pack(">I", adler)
    colour_type = 2 if picture.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    marker = struct.pack(">BBH", _VERSION, _UP if filtered else _NONE, STRIP_ROWS)
    marker += struct.pack(f">{len(strips)}I", *map(len, strips))
    chunks = [(b"IHDR", header), (_MARKER, marker), *((b"IDAT", strip) for strip in strips), (b"IEND", b"")]
    return _SIGNATURE + b"".join(itertools.starmap(_chunk, chunks))


def read_layout(head: bytes) -> Layout | None:
    """Where the strips lie, from a file's first bytes (HEAD_BYTES or all), or None: not soundly striped.

    Raises DatasetError where IHDR or the marker differs from its CRC.
    """
    if len(head) < _MARKER_AT + 8 or not head.startswith(_SIGNATURE + b"\x00\x00\x00\x0dIHDR"):
        return None
    if head[_MARKER_AT + 4 : _MARKER_AT + 8] != _MARKER:
        return None
    marker_bytes = int.from_bytes(head[_MARKER_AT : _MARKER_AT + 4], "big")
    end = _MARKER_AT + 8 + marker_bytes
    if marker_bytes < 8 or marker_bytes % 4 or len(head) < end + 4:
        return None
    _check_crc(head[12:29], head[29:33])
    _check_crc(head[_MARKER_AT + 4 : end], head[end : end + 4])
    width, height, depth, colour_type, *rest = struct.unpack_from(">IIBBBBB", head, 16)
    version, kind, strip_rows = struct.unpack_from(">BBH", head, _MARKER_AT + 8)
    lengths = struct.unpack_from(f">{marker_bytes // 4 - 1}I", head, _MARKER_AT + 12)
    if depth != 8 or colour_type not in (0, 2) or any(rest) or width == 0 or height == 0:
        return None
    known = version == _VERSION and kind in (_NONE, _UP) and strip_rows
    if not known or len(lengths) != -(-height // strip_rows):
        return None
    offsets = itertools.accumulate((_CHUNK_BYTES + length for length in lengths), initial=end + 4)
    channels = 3 if colour_type == 2 else 1
    return Layout(height, width, channels, kind == _UP, strip_rows, tuple(offsets))


def decode_region(data: bytes, rows: slice, columns: slice) -> NDArray[np.uint8] | None:
    """Region (h, w) or RGB (h, w, 3) of a whole file's bytes; None: decode all of it with OpenCV.

    The slices have a start and a stop, inside the picture and not empty. Raises DatasetError where a
    chunk that is used differs from its CRC.
    """
    layout = read_layout(data)
    if layout is None or layout.num_bytes != len(data):
        return None
    return layout.decode(memoryview(data)[layout.span(rows)], rows, columns)


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def _check_crc(body: bytes | memoryview, recorded: bytes | memoryview) -> None:
    if fast_zlib().crc32(body) != int.from_bytes(recorded, "big"):
        kind = bytes(body[:4]).decode("latin-1")
        raise DatasetError(f"broken PNG: its chunk {kind!r} differs from the CRC; replace it")


def _deflate(raw: bytes, filtered: bool, is_last: bool) -> bytes:
    """One strip by itself: matched or merely Huffman coded, whichever is smaller.

    Where sensor noise leaves nothing to match, Huffman alone is up to 10 % smaller and inflates
    faster by a quarter; to try it costs a tenth of the time that matching takes.
    """
    tries = []
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY):
        deflater = zlib.compressobj(6 if filtered else 9, wbits=-15, strategy=strategy)
        tries.append(deflater.compress(raw) + deflater.flush(zlib.Z_FINISH if is_last else zlib.Z_FULL_FLUSH))
    return min(tries, key=len)


def _filtered_lines(rows: NDArray[np.uint8], filtered: bool) -> NDArray[np.uint8]:
    lines = np.zeros((len(rows), 1 + rows.shape[1]), np.uint8)
    lines[:, 1:] = rows
    if filtered:
        lines[1:, 0] = _UP
        lines[1:, 1:] -= rows[:-1]
    return lines


def _unfilter(lines: NDArray[np.uint8], skipped: int, filtered: bool, into: NDArray[np.uint8]) -> None:
    """Writes the pixels of one strip's lines, but for the first `skipped`, as far as `into` reaches."""
    if not filtered:
        into[:] = lines[skipped : skipped + len(into)]
        return
    above = np.add.reduce(lines[: skipped + 1], axis=0, dtype=np.uint8, out=into[0])
    for line, target in zip(lines[skipped + 1 :], into[1:], strict=False):
        above = np.add(above, line, out=target)


def _inflate_exactly(deflated: memoryview, num_bytes: int, is_last: bool) -> bytes | None:
    """What one strip inflates to by itself; None unless it is `num_bytes` and ends as its kind must."""
    if num_bytes > _MOST_INFLATION * len(deflated):
        return None
    if not is_last and deflated[-4:] != _FULL_FLUSH:
        return None
    fast = fast_zlib()
    inflater = fast.decompressobj(wbits=-15)
    try:
        raw: bytes = inflater.decompress(deflated, num_bytes + 1)
    except fast.error:  # nonsense, or a reference to what lies before the strip
        return None
    left_over = _ADLER_BYTES if is_last else 0
    ended = inflater.eof == is_last and len(inflater.unused_data) == left_over
    return raw if ended and len(raw) == num_bytes and not inflater.unconsumed_tail else None


@functools.cache
def fast_zlib() -> ModuleType:
    """The zlib of isal where that is installed (several times faster, the same bytes), else Python's own."""
    try:
        from isal import isal_zlib  # noqa: PLC0415 - optional, and not part of the core's imports
    except ImportError:
        return zlib
    return isal_zlib
