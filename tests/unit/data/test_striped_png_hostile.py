"""Damaged, lying and hostile striped PNGs: the right crop, None (OpenCV decides) or a DatasetError."""

import struct
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest

from pipeline.data import striped_png
from pipeline.data.striped_png import STRIP_ROWS, decode_region, encode
from pipeline.errors import DatasetError

HEIGHT, WIDTH = 150, 7
PICTURE = np.random.default_rng(4).integers(0, 256, (HEIGHT, WIDTH), np.uint8)
MIDDLE = (slice(70, 80), slice(1, 6))


@pytest.fixture(params=["isal", "zlib"], autouse=True)
def inflater(request, monkeypatch):
    """Everything holds with isal and without it."""
    if request.param == "zlib":
        monkeypatch.setattr(striped_png, "fast_zlib", lambda: zlib)
    else:
        pytest.importorskip("isal")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def raw_strips(picture=PICTURE, filters=0) -> list[bytes]:
    lines = np.pad(picture.reshape(len(picture), -1), ((0, 0), (1, 0)), constant_values=filters)
    return [lines[top : top + STRIP_ROWS].tobytes() for top in range(0, len(picture), STRIP_ROWS)]


def deflated(strips, flush=zlib.Z_FULL_FLUSH) -> list[bytes]:
    """One zlib stream in pieces, flushed after each strip."""
    deflater = zlib.compressobj(6)
    pieces = [deflater.compress(strip) + deflater.flush(flush) for strip in strips[:-1]]
    return [*pieces, deflater.compress(strips[-1]) + deflater.flush()]


def forge(
    pieces, *, ihdr=(WIDTH, HEIGHT, 8, 0, 0, 0, 0), marker=(1, 0, STRIP_ROWS), lengths=None, before=b""
):
    """A PNG of these IDAT contents, all CRCs right, whatever else is wrong."""
    lengths = [len(piece) for piece in pieces] if lengths is None else lengths
    marked = struct.pack(">BBH", *marker) + struct.pack(f">{len(lengths)}I", *lengths)
    return b"".join([
        b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", struct.pack(">IIBBBBB", *ihdr)), chunk(b"stRP", marked), before,
        *(chunk(b"IDAT", piece) for piece in pieces), chunk(b"IEND", b""),
    ])  # fmt: skip


@pytest.mark.parametrize("region", [MIDDLE, (slice(0, 5), slice(0, 5)), (slice(140, 145), slice(1, 6))])
def test_what_the_forger_makes_is_sound_where_nothing_is_wrong(region):
    assert np.array_equal(decode_region(forge(deflated(raw_strips())), *region), PICTURE[region])


@pytest.mark.parametrize("shape", [(70, 3), (70, 2, 3)])
@pytest.mark.parametrize("region", [(slice(0, 3), slice(0, 1)), (slice(66, 70), slice(1, 2))])
def test_no_flipped_bit_anywhere_gives_wrong_pixels(shape, region):
    picture = np.random.default_rng(5).integers(0, 256, shape, np.uint8)
    data = bytearray(encode(picture))
    refused = 0
    for place in range(8 * len(data)):
        data[place // 8] ^= 1 << place % 8
        try:
            crop = decode_region(bytes(data), *region)
            assert crop is None or np.array_equal(crop, picture[region])
        except DatasetError:
            refused += 1
        data[place // 8] ^= 1 << place % 8
    assert refused > len(data)


def test_no_cut_gives_pixels():
    data = encode(PICTURE)
    for num_bytes in range(len(data)):
        assert decode_region(data[:num_bytes], *MIDDLE) is None


def test_a_chunk_that_is_used_and_differs_from_its_crc_is_an_error_and_one_that_is_not_used_is_not():
    data = encode(PICTURE)
    first = data.index(b"IDAT")
    second = data.index(b"IDAT", first + 1)
    for at, kind in ((20, "IHDR"), (data.index(b"stRP") + 5, "stRP"), (second + 30, "IDAT")):
        damaged = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        with pytest.raises(DatasetError, match=f"broken PNG: its chunk '{kind}' differs from the CRC"):
            decode_region(damaged, *MIDDLE)
    elsewhere = data[: first + 9] + bytes([data[first + 9] ^ 4]) + data[first + 10 :]
    assert np.array_equal(decode_region(elsewhere, *MIDDLE), PICTURE[MIDDLE])


def test_a_strip_that_leans_on_the_one_before_is_left_to_opencv():
    picture = np.tile(PICTURE[:STRIP_ROWS], (3, 1))[:HEIGHT]
    data = forge(deflated(raw_strips(picture), zlib.Z_SYNC_FLUSH))
    assert np.array_equal(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), picture)
    assert np.array_equal(decode_region(data, slice(0, 64), slice(0, WIDTH)), picture[:64])
    assert decode_region(data, *MIDDLE) is None


@pytest.mark.parametrize("off_by", [-(WIDTH + 1), -1, 1, WIDTH + 1, 10**6])
def test_a_strip_of_more_or_fewer_bytes_than_its_rows_is_left_to_opencv(off_by):
    strips = raw_strips()
    strips[1] = (strips[1] + bytes(max(off_by, 0)))[: len(strips[1]) + off_by]
    assert decode_region(forge(deflated(strips)), *MIDDLE) is None


@pytest.mark.parametrize("last", [False, True])
def test_a_strip_that_ends_otherwise_is_left_to_opencv(last):
    pieces, which = deflated(raw_strips()), 2 if last else 1
    rows = slice(140, 145) if last else MIDDLE[0]
    finished = zlib.compress(raw_strips()[1])[2:-4]
    for ending in (
        pieces[which] + b"\0", pieces[which] + pieces[which], pieces[which][:-1], pieces[which][:-5], b"",
        finished, finished + b"\x00\x00\xff\xff", zlib.compress(raw_strips()[2])[2:-4] + bytes(5),
    ):  # fmt: skip
        forged = [*pieces[:which], ending, *pieces[which + 1 :]]
        assert decode_region(forge(forged), rows, MIDDLE[1]) is None


@pytest.mark.parametrize("filters", [1, 2, 3, 4, 5, 255])
def test_rows_with_another_filter_than_the_marker_names_are_left_to_opencv(filters):
    pieces = deflated(raw_strips(filters=filters))
    for named in (0, 2, filters):
        assert decode_region(forge(pieces, marker=(1, named, STRIP_ROWS)), *MIDDLE) is None


@pytest.mark.parametrize("header", [b"\x78\xbb", b"\x08\x1d", b"\x00\x00"])
def test_an_unusual_zlib_header_is_left_to_opencv(header):
    first, *rest = deflated(raw_strips())
    assert decode_region(forge([header + first[2:], *rest]), slice(0, 5), slice(0, 5)) is None


@pytest.mark.parametrize("lie", [
    {"marker": (0, 0, 64)}, {"marker": (2, 0, 64)}, {"marker": (1, 1, 64)}, {"marker": (1, 4, 64)},
    {"marker": (1, 2, 64)}, {"marker": (1, 0, 0)}, {"marker": (1, 0, 63)}, {"marker": (1, 0, 65)},
    {"marker": (1, 0, 150)}, {"lengths": []}, {"lengths": [1]}, {"lengths": [9, 9]}, {"lengths": [0, 0, 0]},
    {"lengths": [2**32 - 1] * 3}, {"before": chunk(b"tRNS", b"\0\0")}, {"before": chunk(b"gAMA", bytes(4))},
    {"ihdr": (WIDTH, HEIGHT, 16, 0, 0, 0, 0)}, {"ihdr": (WIDTH, HEIGHT, 4, 0, 0, 0, 0)},
    {"ihdr": (WIDTH, HEIGHT, 8, 3, 0, 0, 0)}, {"ihdr": (WIDTH, HEIGHT, 8, 4, 0, 0, 0)},
    {"ihdr": (WIDTH, HEIGHT, 8, 6, 0, 0, 0)}, {"ihdr": (WIDTH, HEIGHT, 8, 2, 0, 0, 0)},
    {"ihdr": (WIDTH, HEIGHT, 8, 0, 1, 0, 0)}, {"ihdr": (WIDTH, HEIGHT, 8, 0, 0, 1, 0)},
    {"ihdr": (WIDTH, HEIGHT, 8, 0, 0, 0, 1)}, {"ihdr": (0, HEIGHT, 8, 0, 0, 0, 0)},
    {"ihdr": (WIDTH + 1, HEIGHT, 8, 0, 0, 0, 0)}, {"ihdr": (WIDTH, 300, 8, 0, 0, 0, 0)},
    {"ihdr": (WIDTH, 0, 8, 0, 0, 0, 0)},
], ids=str)  # fmt: skip
def test_a_header_or_marker_that_is_unusual_or_lies_is_left_to_opencv(lie):
    assert decode_region(forge(deflated(raw_strips()), **lie), *MIDDLE) is None


def test_strips_in_another_order_than_the_marker_says_are_left_to_opencv():
    pieces = deflated(raw_strips())
    assert len({len(piece) for piece in pieces}) == 3
    swapped = [len(piece) for piece in (pieces[1], pieces[0], pieces[2])]
    assert decode_region(forge(pieces, lengths=swapped), *MIDDLE) is None


def test_a_bomb_costs_no_memory():
    wide = forge(deflated(raw_strips()), ihdr=(2**31 - 1, HEIGHT, 8, 0, 0, 0, 0))
    endless = deflated([b"\0" * 10**8, *raw_strips()[1:]])
    tracemalloc.start()
    try:
        for data in (wide, forge(endless)):
            assert decode_region(data, slice(0, 5), slice(0, 5)) is None
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_strip_forged_with_right_checksums_has_opencvs_pixels_or_none():
    picture = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 5).astype(np.uint8)
    generator, (first, second, third) = np.random.default_rng(6), deflated(raw_strips(picture))
    compared = 0
    for _ in range(1000):
        forged = bytearray(second)
        forged[generator.integers(0, len(forged) - 4)] ^= 1 << generator.integers(0, 8)
        try:
            lines = zlib.decompressobj(-15).decompress((first + forged + third)[2:-4])
        except zlib.error:
            continue
        data = forge([first, bytes(forged), third[:-4] + struct.pack(">I", zlib.adler32(lines))])
        crop = decode_region(data, *MIDDLE)
        if crop is not None:
            compared += 1
            opencvs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(crop, opencvs[MIDDLE])
    assert compared > 100
