"""Regions of JPEGs by libturbojpeg 3, where the system has it; without it a JPEG is decoded whole.

Rows above the region are only read through, its columns alone are transformed, and what lies below is
left: a third of the time of the whole picture. Chroma that is stored coarser is interpolated from its
neighbours, so a region is decoded with one more block on each side, which is then cut off.

Pixels must not depend on what is installed. So the library is used only after it has agreed with
OpenCV, to the bit, on a test picture of each kind that is cropped here, once a process; and for
nothing but plain 8-bit baseline JPEGs of these kinds. Anything else is left to OpenCV.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)

LIBRARY = "libturbojpeg.so.0"
"""The name under which Linux has it; versions before 3 have none of the functions below."""

_BLOCKS = {0: (8, 8), 1: (8, 16), 2: (16, 16), 4: (16, 8)}
"""Subsampling (4:4:4, 4:2:2, 4:2:0, 4:4:0, by libturbojpeg's numbers) → rows and columns of a block."""
_DECOMPRESSOR = 1
_RGB = 0
_SUBSAMPLING, _WIDTH, _HEIGHT, _PRECISION, _COLOURS = 4, 5, 6, 7, 8
_PROGRESSIVE, _ARITHMETIC, _LOSSLESS = 12, 14, 15
_YCBCR = 1
_OPENCV_SAMPLING = (
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
)


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


def decode_region(data: bytes, rows: slice, columns: slice) -> NDArray[np.uint8] | None:
    """The region, RGB (h, w, 3), as OpenCV decodes it; None: decode all of it with OpenCV.

    The slices have a start and a stop, inside the picture and not empty.
    """
    library = _agreeing_library()
    return None if library is None else _decode(library, data, rows, columns)


def _decode(library: ctypes.CDLL, data: bytes, rows: slice, columns: slice) -> NDArray[np.uint8] | None:
    handle = library.tj3Init(_DECOMPRESSOR)
    if not handle:
        return None
    try:
        if library.tj3DecompressHeader(handle, data, len(data)) != 0:
            return None
        size = library.tj3Get(handle, _HEIGHT), library.tj3Get(handle, _WIDTH)
        block = _block(library, handle)
        if block is None or rows.stop > size[0] or columns.stop > size[1]:
            return None
        top, height = _widened(rows, block[0], size[0])
        left, width = _widened(columns, block[1], size[1])
        if library.tj3SetCroppingRegion(handle, _Region(left, top, width, height)) != 0:
            return None
        wide = np.empty((height, width, 3), np.uint8)
        if library.tj3Decompress8(handle, data, len(data), wide.ctypes.data, 3 * width, _RGB) != 0:
            return None  # a warning too: OpenCV shall say what it makes of it
    finally:
        library.tj3Destroy(handle)
    return wide[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def _block(library: ctypes.CDLL, handle: int) -> tuple[int, int] | None:
    """The (rows, columns) that are coded together, or None for a kind that is not cropped here."""
    unusual = any(library.tj3Get(handle, what) for what in (_PROGRESSIVE, _ARITHMETIC, _LOSSLESS))
    plain = library.tj3Get(handle, _PRECISION) == 8 and library.tj3Get(handle, _COLOURS) == _YCBCR
    return _BLOCKS.get(library.tj3Get(handle, _SUBSAMPLING)) if plain and not unusual else None


def _widened(wanted: slice, block: int, extent: int) -> tuple[int, int]:
    """Start and length of whole blocks around what is wanted, with one more on each side."""
    start = max(wanted.start // block - 1, 0) * block
    stop = min((-(-wanted.stop // block) + 1) * block, extent)
    return start, stop - start


@cache
def _agreeing_library() -> ctypes.CDLL | None:
    """The library, where it is installed and gives OpenCV's pixels."""
    try:
        library = ctypes.CDLL(LIBRARY)
        _declare(library)
    except (OSError, AttributeError):  # absent, or older than 3
        return None
    if _agrees(library):
        return library
    _log.warning("%s decodes JPEGs to other pixels than OpenCV, so it is not used", LIBRARY)
    return None


def _declare(library: ctypes.CDLL) -> None:
    """Tells ctypes the signatures; raises AttributeError where a function is missing."""
    handle, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.tj3Init.argtypes, library.tj3Init.restype = [number], handle
    library.tj3Destroy.argtypes, library.tj3Destroy.restype = [handle], None
    library.tj3Get.argtypes = [handle, number]
    library.tj3DecompressHeader.argtypes = [handle, ctypes.c_char_p, size]
    library.tj3SetCroppingRegion.argtypes = [handle, _Region]
    library.tj3Decompress8.argtypes = [handle, ctypes.c_char_p, size, ctypes.c_void_p, number, number]


def _agrees(library: ctypes.CDLL) -> bool:
    """Whether a crop of a sharp and colourful picture has OpenCV's pixels, for each subsampling."""
    y, x = np.mgrid[:75, :91]
    picture = np.stack([x * y, 3 * x + 90 * (y % 7 > 3), 255 - 2 * y + x * x // 9], axis=2).astype(np.uint8)
    rows, columns = slice(21, 50), slice(23, 61)
    for sampling in _OPENCV_SAMPLING:
        settings = [cv2.IMWRITE_JPEG_QUALITY, 88, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
        encoded = cv2.imencode(".jpg", picture, settings)[1]
        ours = _decode(library, encoded.tobytes(), rows, columns)
        opencvs = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB)
        if ours is None or opencvs is None or not np.array_equal(ours, opencvs[rows, columns]):
            return False
    return True
