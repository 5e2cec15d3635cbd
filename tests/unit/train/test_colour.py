"""Colours on the device: the pixels that OpenCV makes in the loader, padding left alone."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import AugmentConfig, DataConfig
from pipeline.data.augment import CropBuffers, augment
from pipeline.data.loader import Batch
from pipeline.train.colour import change_colours
from pipeline.train.step import to_device

CPU = torch.device("cpu")
SIZE = (32, 48)
CONFIG = DataConfig(input_height=32, input_width=48, crop_height=32, crop_width=48,
                    augment=AugmentConfig(scale_min=0.5, scale_max=2.0))  # fmt: skip


class Noise:
    key, height, width = "noise", 40, 60

    def image_region(self, rows, columns):
        return np.random.default_rng(3).integers(0, 256, (40, 60, 3), np.uint8)[rows, columns]

    def label_region(self, rows, columns):
        return np.zeros((40, 60), np.uint8)[rows, columns]


def crops(count: int, seed: int = 0):
    """Crops whose colours are still to change: images, matrices and insides."""
    images = np.empty((count, *SIZE, 3), np.uint8)
    made = [augment(Noise(), CONFIG, seed, p, CropBuffers(images[p], np.empty(SIZE, np.uint8)))
            for p in range(count)]  # fmt: skip
    return images, np.stack([c.colour_34 for c in made]), np.array([c.inside for c in made])


def by_opencv(images, matrices, insides):
    expected = images.copy()
    for image, matrix, (top, bottom, left, right) in zip(expected, matrices, insides, strict=True):
        image[top:bottom, left:right] = cv2.transform(image[top:bottom, left:right].copy(), matrix)
    return expected


def by_device(images, matrices, insides):
    return change_colours(*map(torch.from_numpy, (images, matrices, insides))).numpy()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**40))
def test_every_pixel_is_the_one_that_opencv_makes(seed):
    images, matrices, insides = crops(8, seed)
    assert np.array_equal(by_device(images, matrices, insides), by_opencv(images, matrices, insides))


def test_every_value_of_a_channel_agrees_under_every_matrix():
    """All 256 greys and saturated colours, under matrices at the ends of their ranges."""
    _, matrices, _ = crops(64)
    values = np.arange(256, dtype=np.uint8)
    ramp = np.zeros((4, 256, 3), np.uint8)
    ramp[3] = values[:, None]
    for channel in range(3):
        ramp[channel, :, channel] = values
    images = np.broadcast_to(ramp, (64, 4, 256, 3)).copy()
    insides = np.tile([0, 4, 0, 256], (64, 1))
    assert np.array_equal(by_device(images, matrices, insides), by_opencv(images, matrices, insides))


def test_any_matrix_agrees_within_one_grey_level():
    """Without the steps that `augment` keeps to, OpenCV's fixed point and float32 round apart."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, *SIZE, 3), np.uint8)
    matrices = rng.uniform(-2, 2, (16, 3, 4)).astype(np.float32)
    insides = np.tile([0, 32, 0, 48], (16, 1))
    apart = np.abs(by_device(images, matrices, insides).astype(int) - by_opencv(images, matrices, insides))
    assert apart.max() <= 1
    assert (apart == 0).mean() > 0.95


@pytest.mark.parametrize("deferred", [False, True])
def test_batches_reach_the_model_in_their_final_colours(deferred):
    images, matrices, insides = crops(4)
    expected = by_opencv(images, matrices, insides)
    labels = np.zeros((4, *SIZE), np.uint8)
    still_to_change = (matrices, insides) if deferred else (None, None)
    batch = Batch(images if deferred else expected, labels, (0, 1, 2, 3), ("k",) * 4, *still_to_change)
    micro = to_device(batch, CPU)
    assert np.array_equal(micro.image_B3HW.permute(0, 2, 3, 1).numpy(), expected)
    assert micro.image_B3HW.is_contiguous(memory_format=torch.channels_last)
