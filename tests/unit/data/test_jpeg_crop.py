"""Regions of JPEGs: OpenCV's pixels, or None. Most of it needs libturbojpeg 3, and is skipped without."""

import ctypes
import itertools

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import jpeg_crop
from pipeline.data.jpeg_crop import decode_region

SAMPLINGS = [
    getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}") for name in ("411", "420", "422", "440", "444")
]
ROWS, COLUMNS = slice(37, 90), slice(41, 77)
needs_library = pytest.mark.skipif(
    jpeg_crop._agreeing_library() is None, reason="this system has no libturbojpeg 3"
)


@pytest.fixture
def fresh():
    """The choice of the library is made anew in the test, and after it."""
    jpeg_crop._agreeing_library.cache_clear()
    yield
    jpeg_crop._agreeing_library.cache_clear()


def encoded(height=120, width=110, seed=0, *settings) -> bytes:
    small = np.random.default_rng(seed).integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), np.uint8)
    picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", picture, settings)[1].tobytes()


def opencv(data: bytes):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


@needs_library
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_region_equals_opencvs_picture_cropped(data):
    height, width = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 150))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    rows = slice(top, data.draw(st.integers(top + 1, height)))
    columns = slice(left, data.draw(st.integers(left + 1, width)))
    sampling, quality = data.draw(st.sampled_from(SAMPLINGS)), data.draw(st.integers(10, 100))
    jpeg = encoded(height, width, data.draw(st.integers(0, 99)), cv2.IMWRITE_JPEG_QUALITY, quality,
                   cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling)  # fmt: skip
    region = decode_region(jpeg, rows, columns)
    assert (region is None) == (sampling == cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411)
    assert region is None or np.array_equal(region, opencv(jpeg)[rows, columns])


@needs_library
@pytest.mark.parametrize("sampling", SAMPLINGS[1:])
def test_regions_that_begin_or_end_at_any_border_of_blocks_are_right(sampling):
    jpeg = encoded(50, 49, 1, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling)
    whole, borders = opencv(jpeg), [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49]
    for begin, end in itertools.combinations(borders, 2):
        for rows, columns in ((slice(begin, end), slice(20, 21)), (slice(20, 21), slice(begin, end))):
            assert np.array_equal(decode_region(jpeg, rows, columns), whole[rows, columns])


@needs_library
@pytest.mark.parametrize("jpeg", [
    encoded(120, 110, 0, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    cv2.imencode(".jpg", np.zeros((120, 110), np.uint8))[1].tobytes(),
    encoded()[:2000], b"", b"\xff\xd8\xff", encoded(80, 110), encoded(120, 70),
], ids=["progressive", "grey", "cut", "empty", "stub", "lower", "narrower"])  # fmt: skip
def test_any_other_kind_of_jpeg_is_left_to_opencv(jpeg):
    assert decode_region(jpeg, ROWS, COLUMNS) is None


def test_without_the_library_every_jpeg_is_left_to_opencv(fresh, monkeypatch):
    monkeypatch.setattr(jpeg_crop, "LIBRARY", "libnowhere.so.0")
    assert decode_region(encoded(), ROWS, COLUMNS) is None


def test_a_library_older_than_3_is_not_used(fresh, monkeypatch):
    monkeypatch.setattr(jpeg_crop, "LIBRARY", None)  # this process itself, which has none of its functions
    assert not hasattr(ctypes.CDLL(None), "tj3Init")
    assert decode_region(encoded(), ROWS, COLUMNS) is None


def test_a_library_with_other_pixels_than_opencvs_is_not_used_and_said_to_be(fresh, monkeypatch, caplog):
    opened = []
    monkeypatch.setattr(jpeg_crop.ctypes, "CDLL", lambda name: opened.append(name) or object())
    monkeypatch.setattr(jpeg_crop, "_declare", lambda library: None)
    monkeypatch.setattr(
        jpeg_crop, "_decode", lambda library, data, rows, columns: opencv(data)[rows, columns] ^ 1
    )
    for _ in range(2):
        assert jpeg_crop._agreeing_library() is None
    assert opened == ["libturbojpeg.so.0"]
    assert [record.getMessage() for record in caplog.records] == [
        "libturbojpeg.so.0 decodes JPEGs to other pixels than OpenCV, so it is not used"
    ]
