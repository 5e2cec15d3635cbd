"""The striped PNG: an ordinary PNG to OpenCV, and regions that equal OpenCV's picture, cropped."""

import io
import itertools
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import striped_png
from pipeline.data.striped_png import decode_region, encode


def opencv(data: bytes):
    """The picture as the independent decoder sees it, RGB or grey."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return picture[..., ::-1] if picture.ndim == 3 else picture


def whole(picture) -> tuple[slice, slice]:
    return slice(0, picture.shape[0]), slice(0, picture.shape[1])


@st.composite
def pictures_with_regions(draw):
    height, width = draw(st.integers(1, 200)), draw(st.integers(1, 40))
    shape = (height, width, 3) if draw(st.booleans()) else (height, width)
    seed, values = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([1, 4, 256]))
    picture = np.random.default_rng(seed).integers(0, values, shape, np.uint8)
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    rows = slice(top, draw(st.integers(top + 1, height)))
    columns = slice(left, draw(st.integers(left + 1, width)))
    return picture, rows, columns, draw(st.sampled_from([True, False, None]))


@settings(max_examples=150, deadline=None)
@given(pictures_with_regions())
def test_any_region_equals_opencvs_picture_cropped(case):
    picture, rows, columns, filtered = case
    data = encode(picture, filtered)
    assert np.array_equal(opencv(data), picture)
    assert np.array_equal(decode_region(data, rows, columns), opencv(data)[rows, columns])


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (64, 1), (65, 3, 3), (128, 7)])
def test_small_pictures_survive(shape):
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert np.array_equal(decode_region(encode(picture), *whole(picture)), picture)


def test_a_plain_png_is_left_to_opencv():
    picture = np.zeros((70, 9, 3), np.uint8)
    assert decode_region(cv2.imencode(".png", picture)[1].tobytes(), *whole(picture)) is None


@pytest.mark.parametrize("height", [63, 64, 65, 127, 128, 129, 200])
def test_regions_that_begin_or_end_at_any_border_of_strips_are_right(height):
    picture = np.random.default_rng(height).integers(0, 256, (height, 5, 3), np.uint8)
    data, columns = encode(picture), slice(1, 4)
    borders = sorted({row for strip in range(0, height + 1, 64) for row in (strip - 1, strip, strip + 1)})
    borders = [row for row in borders if 0 <= row <= height]
    for top, bottom in itertools.combinations(borders, 2):
        assert np.array_equal(decode_region(data, slice(top, bottom), columns), picture[top:bottom, columns])


@pytest.mark.parametrize("shape", [(130, 9), (130, 9, 3)])
def test_pillow_opens_it_too(shape):
    pillow = pytest.importorskip("PIL.Image")
    picture = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    with pillow.open(io.BytesIO(encode(picture))) as opened:
        assert np.array_equal(np.asarray(opened), picture)


def test_the_same_pixels_give_the_same_bytes_however_they_lie_in_memory():
    picture = np.random.default_rng(2).integers(0, 9, (130, 40, 3), np.uint8)
    mirrored = np.ascontiguousarray(picture[:, ::-1])[:, ::-1]
    assert encode(picture) == encode(mirrored) == encode(np.asfortranarray(picture))


def test_isal_and_zlib_give_the_same_pixels(monkeypatch):
    pytest.importorskip("isal")
    picture = np.random.default_rng(3).integers(0, 50, (130, 40, 3), np.uint8)
    data = encode(picture)
    assert striped_png.fast_zlib() is not zlib
    by_isal = decode_region(data, slice(60, 130), slice(3, 30))
    monkeypatch.setattr(striped_png, "fast_zlib", lambda: zlib)
    assert np.array_equal(decode_region(data, slice(60, 130), slice(3, 30)), by_isal)


def test_noise_is_stored_without_matches_and_order_with_them():
    noise = np.random.default_rng(4).normal(128, 3, (64, 500)).astype(np.uint8)
    order = np.tile(np.arange(100, dtype=np.uint8), (64, 5))
    for picture, most in ((noise, 0.5), (order, 0.05)):
        assert len(encode(picture)) < most * picture.size


@pytest.mark.parametrize("picture", [
    np.zeros((2, 2), np.uint16), np.zeros((2, 2, 4), np.uint8), np.zeros(4, np.uint8),
    np.zeros((0, 4), np.uint8), np.zeros((4, 0, 3), np.uint8),
], ids=lambda picture: f"{picture.dtype}{picture.shape}")  # fmt: skip
def test_what_a_striped_png_cannot_hold_is_refused(picture):
    with pytest.raises(ValueError, match="holds grey or RGB uint8 of at least one pixel"):
        encode(picture)
