"""How a packed image is encoded, and the proof that it still is the same picture.

`striped` (the default) stores PNGs as striped ones, of which a crop costs only its own rows; JPEGs keep
their bytes, as making them lossless would multiply their size and win nothing back. `keep` keeps every
image's bytes. `jpeg:Q` makes JPEGs of quality Q: the one choice that changes pixels. Labels are always
striped PNGs of train ids. Whatever is encoded is decoded again before it is stored, by OpenCV and by
this pipeline's own reader, and compared pixel by pixel.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data import striped_png
from pipeline.data.decode import Header, decode_gray, decode_rgb, read_header
from pipeline.errors import ConfigError, DatasetError


@dataclass(frozen=True)
class Codec:
    """What becomes of images; `quality` is that of jpeg alone."""

    kind: Literal["striped", "keep", "jpeg"] = "striped"
    quality: int = 0

    def __str__(self) -> str:
        return f"jpeg:{self.quality}" if self.kind == "jpeg" else self.kind


STRIPED = Codec()


def parse_codec(text: str) -> Codec:
    """The codec that is written `striped`, `keep` or `jpeg:Q`; raises ConfigError."""
    if text == "striped":
        return STRIPED
    if text == "keep":
        return Codec("keep")
    match = re.fullmatch(r"jpeg:([1-9][0-9]?|100)", text)
    if match is None:
        raise ConfigError(
            f"--codec {text} is none: type striped, keep or jpeg:Q with a quality Q of 1 to 100"
        )
    return Codec("jpeg", int(match[1]))


def encode_image(data: bytes, codec: Codec, name: str) -> tuple[bytes, Header]:
    """The bytes to store for an image file, and their header; raises DatasetError naming `name`."""
    header = read_header(data, name)
    if codec.kind == "jpeg":
        encoded = _jpeg(decode_rgb(data, name), codec.quality)
        _require(decode_rgb(encoded, name).shape[:2] == (header.height, header.width), name)
    elif codec.kind == "keep" or header.codec == "jpeg":
        encoded = data
    else:
        image_HW3 = decode_rgb(data, name)
        encoded = striped_png.encode(image_HW3)
        _require(np.array_equal(decode_rgb(encoded, name), image_HW3), name)
        _require(_read_by_region(encoded, image_HW3), name)
    return encoded, read_header(encoded, name)


def encode_label(train_HW: NDArray[np.uint8], name: str) -> bytes:
    """A striped PNG of train ids; raises DatasetError naming `name` where it would not read back."""
    encoded = striped_png.encode(train_HW)
    _require(np.array_equal(decode_gray(encoded, name), train_HW), name)
    _require(_read_by_region(encoded, train_HW), name)
    return encoded


def _jpeg(image_HW3: NDArray[np.uint8], quality: int) -> bytes:
    _, data = cv2.imencode(".jpg", image_HW3[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def _read_by_region(encoded: bytes, picture: NDArray[np.uint8]) -> bool:
    """True where our reader finds the same pixels, in the whole and in a part that begins inside a strip."""
    height, width = picture.shape[:2]
    rows, columns = slice(height // 3, height - height // 4), slice(width // 3, width - width // 4)
    for part in ((slice(0, height), slice(0, width)), (rows, columns)):
        read = striped_png.decode_region(encoded, *part)
        if read is None or not np.array_equal(read, picture[part]):
            return False
    return True


def _require(same: bool, name: str) -> None:
    if not same:
        raise DatasetError(f"{name} does not read back as it was encoded; pack it with --codec keep")
