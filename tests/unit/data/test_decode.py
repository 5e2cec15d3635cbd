"""Whole pictures: the header first, always RGB, labels exactly as stored or refused."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from pipeline.data.decode import (
    MAX_PIXELS,
    Header,
    decode_gray,
    decode_rgb,
    read_header,
    refuse_broken_png,
)
from pipeline.data.striped_png import encode
from pipeline.errors import DatasetError

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
GREY = RGB[..., 1].copy()


def file(picture, suffix=".png", *settings) -> bytes:
    """As OpenCV writes it; colours in RGB or RGBA."""
    if picture.ndim == 3:
        order = [2, 1, 0, 3][: picture.shape[2]]
        picture = np.ascontiguousarray(picture[..., order])
    return cv2.imencode(suffix, picture, settings)[1].tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(depth: int, colour_type: int, lines: bytes, size=(2, 2), *more: bytes) -> bytes:
    """A PNG by hand, for what OpenCV does not write; filters are part of the lines."""
    header = struct.pack(">IIBBBBB", size[1], size[0], depth, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


PALETTE = png(8, 3, b"\0\0\1\0\1\0", (2, 2), chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60])))
TRANSPARENT_GREY = png(8, 0, b"\0\0\1\0\1\0", (2, 2), chunk(b"tRNS", b"\0\1"))
TWO_BITS = png(2, 0, b"\0\x10\0\x40")


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """The JPEG with an Exif tag that asks viewers to turn it."""
    tag = struct.pack(">2sHIHHHIHHI", b"MM", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    segment = b"Exif\0\0" + tag
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(segment)) + segment + jpeg[2:]


@pytest.mark.parametrize("data", [file(RGB), encode(RGB), file(np.dstack([RGB, GREY]))])
def test_images_are_rgb_and_lose_their_alpha(data):
    assert np.array_equal(decode_rgb(data, "x"), RGB)


def test_grey_palette_and_16_bit_images_become_rgb_of_8_bits():
    for data in (file(GREY), encode(GREY), file(GREY.astype(np.uint16) * 257)):
        assert np.array_equal(decode_rgb(data, "x"), np.dstack([GREY] * 3))
    first, second = [10, 20, 30], [40, 50, 60]
    assert decode_rgb(PALETTE, "x").tolist() == [[first, second], [second, first]]


def test_an_orientation_tag_is_ignored_as_labels_are_drawn_on_the_stored_grid():
    jpeg = file(RGB, ".jpg")
    turned = with_orientation(jpeg, 6)
    default = cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR)
    assert default.shape == (30, 20, 3)  # OpenCV by itself turns it
    assert np.array_equal(decode_rgb(turned, "x"), decode_rgb(jpeg, "x"))


@pytest.mark.parametrize("data", [file(GREY), encode(GREY)])
def test_labels_are_read_as_they_are_stored(data):
    assert np.array_equal(decode_gray(data, "x"), GREY)


@pytest.mark.parametrize("data", [
    file(RGB), encode(RGB), PALETTE, TWO_BITS, file(GREY.astype(np.uint16)), file(GREY, ".jpg"),
    file(np.dstack([RGB, GREY])),
], ids=["rgb", "striped rgb", "palette", "2 bits", "16 bits", "jpeg", "rgba"])  # fmt: skip
def test_labels_whose_ids_a_conversion_would_change_are_refused(data):
    with pytest.raises(DatasetError, match=r"label\.png is not an 8-bit single-channel PNG"):
        decode_gray(data, "label.png")


def test_a_label_with_transparency_keeps_its_ids_or_is_refused():
    try:
        assert decode_gray(TRANSPARENT_GREY, "x").tolist() == [[0, 1], [1, 0]]
    except DatasetError as error:
        assert "x has transparency" in str(error)  # noqa: PT017 - OpenCV's versions differ


@pytest.mark.parametrize(("data", "header"), [
    (file(RGB), Header("png", 20, 30, 8, grey=False)),
    (encode(GREY), Header("png", 20, 30, 8, grey=True)),
    (file(GREY.astype(np.uint16)), Header("png", 20, 30, 16, grey=True)),
    (PALETTE, Header("png", 2, 2, 8, grey=False)),
    (file(RGB, ".jpg"), Header("jpeg", 20, 30, 8, grey=False)),
    (file(GREY, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1), Header("jpeg", 20, 30, 8, grey=True)),
    (b"\xff\xd8\xff\x01\xff\xff" + file(RGB, ".jpg")[3:], Header("jpeg", 20, 30, 8, grey=False)),
    (with_orientation(file(RGB, ".jpg"), 6), Header("jpeg", 20, 30, 8, grey=False)),
])  # fmt: skip
def test_the_header_is_read_without_decoding(data, header, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    assert read_header(data, "x") == header


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (2**31 - 1, 2**31 - 1), (MAX_PIXELS + 1, 1)])
@pytest.mark.parametrize("decode", [decode_rgb, decode_gray])
def test_a_picture_of_no_or_too_many_pixels_is_refused_before_it_is_decoded(size, decode, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(DatasetError, match=f"x claims {size[0]}x{size[1]} pixels; 1 to {MAX_PIXELS}"):
        decode(png(8, 0, b"", size), "x")


@pytest.mark.parametrize("decode", [decode_rgb, decode_gray])
def test_a_picture_that_tells_the_decoder_another_size_than_its_header_is_refused(decode, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: np.zeros((20, 29), np.uint8))
    with pytest.raises(DatasetError, match="x is broken: its header is sound but it cannot be decoded"):
        decode(file(GREY), "x")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_cut_at_any_byte_is_refused_or_decoded_but_never_another_error(suffix):
    data = file(RGB[:6, :6], suffix)
    for num_bytes in range(len(data)):
        try:
            assert decode_rgb(data[:num_bytes], "x").shape == (6, 6, 3)
        except DatasetError as error:
            assert str(error).startswith("x ")  # noqa: PT017 - either outcome is right


def test_a_png_cut_or_flipped_anywhere_before_its_end_is_called_broken():
    data = encode(GREY)
    refuse_broken_png(data, "x")
    for at in range(16, len(data) - 12):
        for damaged in (data[:at], data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]):
            with pytest.raises(DatasetError, match="x is a broken PNG"):
                refuse_broken_png(damaged, "x")
