"""Training crops: image and label agree, sizes are exact, and all follows from (seed, position)."""

import dataclasses
import hashlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import AugmentConfig, DataConfig
from pipeline.data import augment as crops
from pipeline.data.augment import PAD_RGB, CropBuffers, colour_in_place, constants, resize_image

STILL = AugmentConfig(scale_min=1.0, scale_max=1.0, flip=False, photometric=False, max_class_share=1.0)
# Colours of 8 ids in which no blend of two is a third: any mixture is told from a pure pixel.
CODES = np.random.default_rng(5).permutation(np.arange(20, 220, dtype=np.uint8))[:24].reshape(8, 3)


class Picture:
    """A sample in memory that counts the pixels it was asked for."""

    key = "k"

    def __init__(self, image, label):
        self._image, self._label = image, label
        self.height, self.width = label.shape
        self.image_regions, self.label_regions = [], []

    def image_region(self, rows, columns):
        self.image_regions.append((rows, columns))
        return self._image[rows, columns]

    def label_region(self, rows, columns):
        self.label_regions.append((rows, columns))
        return self._label[rows, columns]


def augment(image, label, made, seed, position):
    """The finished crop, image and label."""
    into = buffers(made)
    crop = crops.augment(Picture(image, label), made, seed, position, into)
    colour_in_place(into.image_hw3, crop.colour_34, crop.inside)
    return into.image_hw3, into.label_hw


def buffers(made, fill=77):
    """Where a crop goes: what lay there before must not matter."""
    size = made.crop_height, made.crop_width
    return CropBuffers(np.full((*size, 3), fill, np.uint8), np.full(size, fill, np.uint8))


def config(crop=(64, 96), size=(64, 96), **changes) -> DataConfig:
    return DataConfig(input_height=size[0], input_width=size[1], crop_height=crop[0], crop_width=crop[1],
                      augment=dataclasses.replace(STILL, **changes))  # fmt: skip


def coded_scene(height: int, width: int, seed: int = 0):
    """A label of large patches, and the image that encodes its ids by colour."""
    patches = np.random.default_rng(seed).integers(0, 8, (5, 7), np.uint8)
    label = cv2.resize(patches, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return CODES[label], label


@settings(max_examples=60)
@given(height=st.integers(40, 200), width=st.integers(40, 300), position=st.integers(0, 10**12),
       crop=st.tuples(st.integers(16, 90), st.integers(16, 120)))  # fmt: skip
def test_a_crop_is_the_whole_picture_cut_resized_padded_and_mirrored(height, width, position, crop):
    """Done the long way with the rectangle that was asked for, from the whole picture, in fresh arrays."""
    image, label = coded_scene(height, width)
    made = config(crop=crop, size=(80, 120), scale_min=0.3, scale_max=2.0, flip=True, photometric=True,
                  max_class_share=0.75)  # fmt: skip
    source, into = Picture(image, label), buffers(made)
    result = crops.augment(source, made, 1, position, into)
    ((rows, columns),) = source.image_regions
    assert source.label_regions[-1] == (rows, columns)
    top, bottom, left, right = result.inside
    size = (right - left, bottom - top)
    cut = image[rows, columns]
    shrinks = cut.shape[0] >= 2 * size[1] and cut.shape[1] >= 2 * size[0]
    small = cv2.resize(cut, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    small_label = cv2.resize(label[rows, columns], size, interpolation=cv2.INTER_NEAREST_EXACT)
    expected = []
    for turn in (1, -1):
        image_hw3, label_hw = np.full((*crop, 3), PAD_RGB, np.uint8), np.full(crop, 255, np.uint8)
        image_hw3[top:bottom, left:right], label_hw[top:bottom, left:right] = (
            small[:, ::turn],
            small_label[:, ::turn],
        )
        expected.append((image_hw3.tobytes(), label_hw.tobytes()))
    assert (into.image_hw3.tobytes(), into.label_hw.tobytes()) in expected


def test_a_crop_is_written_into_its_row_of_a_batch_and_nowhere_else():
    image, label = coded_scene(90, 130)
    made = config(crop=(40, 60), size=(80, 120), scale_min=0.3, scale_max=2.0, flip=True, photometric=True)
    images, labels = np.full((3, 40, 60, 3), 77, np.uint8), np.full((3, 40, 60), 77, np.uint8)
    for position in range(40):
        images[1], labels[1] = position, position
        result = crops.augment(Picture(image, label), made, 0, position, CropBuffers(images[1], labels[1]))
        colour_in_place(images[1], result.colour_34, result.inside)
        expected = augment(image, label, made, 0, position)
        assert np.array_equal(images[1], expected[0])
        assert np.array_equal(labels[1], expected[1])
        assert (images[::2] == 77).all()
        assert (labels[::2] == 77).all()


def test_colours_are_exact_in_float32_so_that_any_device_makes_the_same_pixels():
    """Matrices in steps of 1/1024, lifted by a quarter of one: no half, and nothing to round."""
    made = config(photometric=True)
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3))
    for position in range(100):
        matrix = crops.augment(Picture(*coded_scene(64, 96)), made, 0, position, buffers(made)).colour_34
        steps = matrix.astype(np.float64) * 4096
        assert (steps == np.round(steps)).all()
        exact = pixels @ matrix[:, :3].astype(np.float64).T + matrix[:, 3]
        assert np.abs(exact).max() < 2**24 / 4096
        assert np.abs(exact - np.floor(exact) - 0.5).min() >= 1 / 4096


@settings(max_examples=60)
@given(height=st.integers(40, 200), width=st.integers(40, 300), position=st.integers(0, 10**12),
       crop=st.tuples(st.integers(16, 90), st.integers(16, 120)))  # fmt: skip
def test_image_and_label_agree_wherever_a_pixel_is_pure(height, width, position, crop):
    image, label = coded_scene(height, width)
    made = config(crop=crop, size=(80, 120), scale_min=0.5, scale_max=2.0, flip=True)
    image_hw3, label_hw = augment(image, label, made, seed=1, position=position)
    assert image_hw3.shape == (*crop, 3)
    assert label_hw.shape == crop
    assert image_hw3.dtype == label_hw.dtype == np.uint8
    padding = label_hw == 255
    assert (image_hw3[padding] == PAD_RGB).all()
    inside = image_hw3[~padding].astype(int)
    distance = np.abs(inside[:, None] - CODES[None].astype(int)).max(axis=2)  # pixels x ids
    pure = distance.min(axis=1) == 0
    assert (distance.argmin(axis=1) == label_hw[~padding])[pure].all()
    assert pure.mean() > 0.4  # patches are large, so most pixels can be judged


def test_label_is_the_nearest_pixel_centre_of_what_the_image_blends():
    """A vertical edge: where the label changes, the linear image is within half a step of the middle."""
    label = np.zeros((40, 90), np.uint8)
    label[:, 37:] = 1
    image = np.repeat((label * 200)[..., None], 3, axis=2)
    for position in range(40):
        image_hw3, label_hw = augment(image, label, config(size=(80, 200), scale_max=1.7), 0, position)
        bright = image_hw3[..., 0] > 100
        undecided = np.abs(image_hw3[..., 0].astype(int) - 100) <= 1
        assert ((bright == (label_hw == 1)) | undecided | (label_hw == 255)).all()


def test_crop_is_a_pure_function_of_seed_and_position():
    image, label = coded_scene(90, 130)
    made = config(scale_min=0.5, scale_max=2.0, flip=True, photometric=True, max_class_share=0.75)
    crops = [augment(image, label, made, seed, position) for seed in (0, 1) for position in range(40)]
    again = [augment(image, label, made, seed, position) for seed in (0, 1) for position in range(40)]
    for (image_a, label_a), (image_b, label_b) in zip(crops, again, strict=True):
        assert np.array_equal(image_a, image_b)
        assert np.array_equal(label_a, label_b)
    assert len({label.tobytes() for _, label in crops}) > 70


def test_geometry_is_stable_for_ever():
    rows, columns = np.indices((90, 130))
    label = ((rows // 7 * 3 + columns // 9) % 8).astype(np.uint8)
    image = CODES[label]
    made = config(scale_min=0.5, scale_max=2.0, flip=True, max_class_share=0.75)
    digest = hashlib.sha256()
    for position in (0, 1, 2, 1000, 2**40):
        digest.update(augment(image, label, made, 7, position)[1].tobytes())
    assert digest.hexdigest() == "86a834f58dff830e226c2f5172a0a30033ddc51ba2de7bc01f90c66b93cb7ec8"


@pytest.mark.parametrize(("scale", "rows", "columns"), [(0.5, 32, 48), (0.8, 51, 77)])
def test_small_scales_pad_with_mean_colour_and_255(scale, rows, columns):
    image, label = coded_scene(64, 96)
    made = config(scale_min=scale, scale_max=scale, photometric=True)
    starts = set()
    for position in range(30):
        image_hw3, label_hw = augment(image, label, made, 0, position)
        covered = np.argwhere(label_hw != 255)
        (top, left), (bottom, right) = covered.min(axis=0), covered.max(axis=0)
        assert (bottom - top + 1, right - left + 1) == (rows, columns)
        assert (image_hw3[label_hw == 255] == PAD_RGB).all()
        starts.add((int(top), int(left)))
    assert len(starts) > 20


@pytest.mark.parametrize("scale", [1.0, 1.25, 2.0])
def test_scale_decides_how_much_of_the_source_is_seen(scale):
    """A ramp tells columns apart: the crop spans extent / scale of them."""
    width = 192
    ramp = np.arange(width, dtype=np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (128, width, 3)).copy()
    label = np.broadcast_to(ramp[None] % 200, (128, width)).copy()
    made = config(scale_min=scale, scale_max=scale)
    for position in range(20):
        image_hw3, label_hw = augment(image, label, made, 0, position)
        assert not (label_hw == 255).any()
        seen = int(image_hw3[..., 0].max()) - int(image_hw3[..., 0].min()) + 1
        assert abs(seen - width / scale) <= 3


def test_scales_fill_their_range():
    image, label = np.zeros((64, 96, 3), np.uint8), np.zeros((64, 96), np.uint8)
    made = config(scale_min=0.5, scale_max=0.9)
    rows = [(augment(image, label, made, 0, p)[1] != 255).any(axis=1).sum() for p in range(200)]
    assert min(rows) in (32, 33)
    assert max(rows) in (56, 57, 58)
    assert np.histogram(rows, bins=4, range=(32, 58))[0].min() > 30


def test_flip_mirrors_image_and_label_together_about_half_of_the_time():
    image, label = coded_scene(64, 96)
    flips = 0
    for position in range(200):
        image_hw3, label_hw = augment(image, label, config(flip=True), 0, position)
        mirrored = not np.array_equal(label_hw, label)
        expected = (image[:, ::-1], label[:, ::-1]) if mirrored else (image, label)
        assert np.array_equal(image_hw3, expected[0])
        assert np.array_equal(label_hw, expected[1])
        flips += mirrored
    assert 70 < flips < 130


def test_photometric_changes_pixels_and_never_a_label():
    image, label = coded_scene(90, 130)
    plain, changed = config(scale_max=2.0), config(scale_max=2.0, photometric=True)
    differ = 0
    for position in range(50):
        image_a, label_a = augment(image, label, plain, 0, position)
        image_b, label_b = augment(image, label, changed, 0, position)
        assert np.array_equal(label_a, label_b)
        differ += not np.array_equal(image_a, image_b)
    assert differ > 40


def test_grey_keeps_its_hue_whatever_the_colours_do():
    """Hue and saturation leave grey alone, so all three channels move together."""
    image, label = np.full((64, 96, 3), 120, np.uint8), np.zeros((64, 96), np.uint8)
    values = set()
    for position in range(60):
        image_hw3, _ = augment(image, label, config(photometric=True), 0, position)
        pixel = image_hw3[0, 0].astype(int)
        assert np.ptp(pixel) <= 1
        assert (image_hw3 == image_hw3[0, 0]).all()
        values.add(int(pixel[0]))
    assert min(values) < 80
    assert max(values) > 160


def test_crops_of_one_class_are_drawn_again():
    """Half of the picture is one class: free crops are often all of it, restricted ones seldom."""
    label = np.zeros((64, 192), np.uint8)
    label[:, 96:] = np.indices((64, 96)).sum(axis=0) // 8 % 5
    image = np.zeros((64, 192, 3), np.uint8)

    def full(share: float) -> int:
        made = config(crop=(32, 32), size=(64, 192), max_class_share=share)
        return sum((augment(image, label, made, 0, p)[1] == 0).mean() > 0.75 for p in range(200))

    assert full(1.0) > 60
    assert full(0.75) < 5


@settings(max_examples=200)
@given(seed=st.integers(0, 2**32), ignored=st.sampled_from([0, 0.5, 0.95, 1]), share=st.floats(0.05, 0.99),
       rare=st.integers(1, 60), shape=st.tuples(st.integers(1, 30), st.integers(1, 30)))  # fmt: skip
def test_whether_a_class_fills_too_much_is_told_exactly(seed, ignored, share, rare, shape):
    """Against counting every id of every pixel, for labels that hide classes between every eighth row too."""
    rng = np.random.default_rng(seed)
    label = np.where(rng.random(shape) < rng.random(), rng.integers(0, 255), rng.integers(0, rare, shape))
    label[::8][rng.random(label[::8].shape) < rng.random()] = rng.integers(0, 255)
    label = np.where(rng.random(shape) < ignored, 255, label).astype(np.uint8)
    counts = np.bincount(label.ravel(), minlength=256)[:255]
    expected = counts.sum() == 0 or counts.max() > share * counts.sum()
    assert crops._one_class_exceeds(label, share) == expected


def test_ignored_pixels_do_not_count_towards_a_class_share():
    """Nine tenths are ignored and no class exceeds half of the rest: the first draw is always taken."""
    label = np.full((64, 192), 255, np.uint8)
    label[::20, 0::2], label[::20, 1::2] = 0, 1
    image = np.zeros((64, 192, 3), np.uint8)
    free, bound = (config(crop=(40, 60), size=(64, 192), max_class_share=share) for share in (1.0, 0.75))
    for position in range(40):
        expected = augment(image, label, free, 0, position)[1]
        assert np.array_equal(augment(image, label, bound, 0, position)[1], expected)


def test_a_picture_without_labels_still_gives_a_crop():
    nothing = np.full((64, 96), 255, np.uint8)
    made = config(max_class_share=0.75)
    assert (augment(np.zeros((64, 96, 3), np.uint8), nothing, made, 0, 0)[1] == 255).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (700, 3)])
def test_any_source_size_gives_the_exact_crop_size(size):
    image, label = np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint8)
    made = config(scale_min=0.05, scale_max=8.0, flip=True, photometric=True)
    for position in range(30):
        image_hw3, label_hw = augment(image, label, made, 0, position)
        assert image_hw3.shape == (64, 96, 3)
        assert label_hw.shape == (64, 96)


def test_whole_pictures_are_resized_without_aliasing():
    stripes = np.zeros((40, 40, 3), np.uint8)
    stripes[:, ::2] = 200
    assert (resize_image(stripes, 10, 10) == 100).all()
    assert np.array_equal(resize_image(stripes, 40, 40), stripes)


def test_constants_name_every_setting_that_decides_a_pixel():
    base = config()
    for change in ({"crop_height": 32}, {"crop_width": 32}, {"input_height": 32}, {"input_width": 32},
                   *({"augment": dataclasses.replace(STILL, **a)} for a in (
                       {"scale_min": 0.7}, {"scale_max": 1.5}, {"flip": True}, {"photometric": True},
                       {"max_class_share": 0.5}))):  # fmt: skip
        assert constants(dataclasses.replace(base, **change)) != constants(base)
    assert constants(dataclasses.replace(base, loader_workers=3, prefetch=9)) == constants(base)
