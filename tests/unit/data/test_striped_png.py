"""The striped PNG: an ordinary PNG to OpenCV, and regions that equal OpenCV's picture, cropped."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
