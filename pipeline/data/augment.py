"""Training crops: a pure function of (sample, seed, position).

Shapes: H W source pixels, h w crop pixels.

The crop is chosen first, as an integer rectangle of source pixels, and exactly that rectangle is
resized, linearly for the image and by nearest pixel centre for the label: the two agree by
construction, and pixels outside the crop cost nothing. At scale 1 the whole picture has the network's
input size. Where a scaled picture is smaller than the crop, the rest is mean colour and label 255.

Deviation from the field's usual order (resize, crop, flip, distort, pad): contrast, saturation and hue
are one linear map, so they and brightness are applied as one colour matrix, at crop size; hue turns in
the plane of colour differences instead of the HSV cone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.config import DataConfig
from pipeline.data.draws import Purpose, raw_words, uniforms
from pipeline.data.labels import IGNORE
from pipeline.data.reader import SourceSample

PAD_RGB = (124, 116, 104)
"""ImageNet's mean colour: zero after the model's normalisation."""
IDENTITY_34 = np.eye(3, 4, dtype=np.float32)
"""The colours as they are."""
AUGMENT_FORMAT = "augment/2"
"""Changes with anything that changes the pixels of a position."""

_TRIES = 10
_BRIGHTNESS = 32.0
_FACTOR = 0.5
_HUE_DEGREES = 18.0
# Luma and two colour differences (NTSC): hue turns the last two, saturation scales them.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = np.linalg.inv(_YIQ)
_LIFT = np.array([0, 0, 0, 1 / 4096])


@dataclass(frozen=True, slots=True)
class _Span:
    """One axis of a crop: `length` source pixels from `start` become `out` crop pixels from `out_start`."""

    start: int
    length: int
    out_start: int
    out: int

    @property
    def source(self) -> slice:
        """Where it lies in the picture."""
        return slice(self.start, self.start + self.length)

    @property
    def target(self) -> slice:
        """Where it lies in the crop."""
        return slice(self.out_start, self.out_start + self.out)

    def mirrored(self, crop: int) -> slice:
        """Where it lies in a crop of `crop` pixels that is turned over."""
        return slice(crop - self.out_start - self.out, crop - self.out_start)


@dataclass(frozen=True, slots=True)
class CropBuffers:
    """Where a crop is written: arrays of exactly the configured crop size, such as a row of a batch."""

    image_hw3: NDArray[np.uint8]
    label_hw: NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Crop:
    """What is left to do to the pixels of a crop: `colour_in_place`, here or the same on the device."""

    colour_34: NDArray[np.float32]
    """RGB and 1 to RGB; the identity where no colour changes."""
    inside: tuple[int, int, int, int]
    """Top, bottom, left and right of what is picture and not padding, as for slices."""


def augment(source: SourceSample, config: DataConfig, seed: int, position: int, into: CropBuffers) -> Crop:
    """Writes the crop of a position, its colours as they are in the source, and returns what they become.

    The same arguments give the same crop in every process, thread and NumPy version. Nothing but the
    labels of the candidates and the image of the chosen rectangle is decoded. Raises SampleError.
    """
    assert into.label_hw.shape == (config.crop_height, config.crop_width), into.label_hw.shape
    # A fixed number of draws, all before the first use: what one of them decides shifts no other.
    draw = uniforms(raw_words(seed, Purpose.AUGMENT, (position, 0, 0), 10 + 2 * _TRIES)).tolist()
    settings = config.augment
    scale = settings.scale_min + draw[0] * (settings.scale_max - settings.scale_min)
    rows, columns, label_HW = _choose_crop(source, config, scale, draw[10:])
    image_HW3 = source.image_region(rows.source, columns.source)
    flip = settings.flip and draw[1] < 0.5
    target = (rows.target, columns.mirrored(config.crop_width) if flip else columns.target)
    if (rows.out, columns.out) != into.label_hw.shape:
        into.image_hw3[:] = PAD_RGB
        into.label_hw[:] = IGNORE
    # OpenCV writes into these views of the caller's arrays: a crop is never copied.
    image_hw3, label_hw = into.image_hw3[target], into.label_hw[target]
    resize_image(image_HW3, rows.out, columns.out, image_hw3)
    # NEAREST_EXACT takes the nearest pixel centre as LINEAR does; plain NEAREST is half a pixel off.
    cv2.resize(label_HW, (columns.out, rows.out), label_hw, interpolation=cv2.INTER_NEAREST_EXACT)
    if flip:
        cv2.flip(image_hw3, 1, image_hw3)
        cv2.flip(label_hw, 1, label_hw)
    colour_34 = _colour_matrix(draw[2:10]) if settings.photometric else IDENTITY_34
    inside = (target[0].start, target[0].stop, target[1].start, target[1].stop)
    return Crop(colour_34, inside)


def colour_in_place(
    image_hw3: NDArray[np.uint8], colour_34: NDArray[np.float32], inside: tuple[int, int, int, int]
) -> None:
    """Changes the colours of a crop, padding left out."""
    if not np.array_equal(colour_34, IDENTITY_34):
        top, bottom, left, right = inside
        picture_hw3 = image_hw3[top:bottom, left:right]
        cv2.transform(picture_hw3, colour_34, picture_hw3)


def resize_image(
    image_HW3: NDArray[np.uint8], height: int, width: int, into: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """The picture at another size: averaged over areas when halved or smaller, else linear.

    Training crops and whole pictures come through here alike, so the network sees one kind of pixel.
    """
    shrinks = image_HW3.shape[0] >= 2 * height and image_HW3.shape[1] >= 2 * width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image_HW3, (width, height), into, interpolation=interpolation), np.uint8)


def constants(config: DataConfig) -> dict[str, str | int | float | bool]:
    """Everything but seed and position that the crops depend on, as JSON values."""
    return {
        "format": AUGMENT_FORMAT,
        "input_height": config.input_height,
        "input_width": config.input_width,
        "crop_height": config.crop_height,
        "crop_width": config.crop_width,
        **asdict(config.augment),
    }


def _choose_crop(
    source: SourceSample, config: DataConfig, scale: float, draw: Sequence[float]
) -> tuple[_Span, _Span, NDArray[np.uint8]]:
    """Rows, columns and labels of the first of ten crops that no class fills too much, or of the last."""
    for first, second in zip(draw[0::2], draw[1::2], strict=True):
        rows = _span(source.height, scale * config.input_height, config.crop_height, first)
        columns = _span(source.width, scale * config.input_width, config.crop_width, second)
        label_HW = source.label_region(rows.source, columns.source)
        share = config.augment.max_class_share
        if share >= 1.0 or not _one_class_exceeds(label_HW, share):
            break
    return rows, columns, label_HW


def _span(extent: int, scaled: float, crop: int, where: float) -> _Span:
    """One axis: a picture of `extent` pixels, to be seen as `scaled` pixels, through `crop` of them."""
    if scaled >= crop:
        length = min(extent, max(1, round(extent * crop / scaled)))
        return _Span(int(where * (extent - length + 1)), length, 0, crop)
    out = min(crop, max(1, round(scaled)))
    return _Span(0, extent, int(where * (crop - out + 1)), out)


def _one_class_exceeds(label_HW: NDArray[np.uint8], share: float) -> bool:
    """True where a class has more than a share of the labelled pixels, or nothing is labelled.

    Exact, for a fraction of a histogram of all pixels: every eighth row says in which order to count the
    classes, until too few pixels are left for another one.
    """
    rest = label_HW.size - np.count_nonzero(label_HW == IGNORE)
    allowed = share * rest
    seen = cv2.calcHist([label_HW[::8]], [0], None, [256], [0, 256]).ravel()[:IGNORE]
    for class_id in np.argsort(-seen).astype(np.uint8):
        if rest <= allowed:
            return not rest
        count = np.count_nonzero(label_HW == class_id)
        if count > allowed:
            return True
        rest -= count
    return False


def _colour_matrix(draw: Sequence[float]) -> NDArray[np.float32]:
    """The 3x4 map of brightness, then hue and saturation, then contrast; each happens half of the time.

    In steps of 1/1024, the fixed point of OpenCV's transform, so that every product and sum is exact in
    float32 as well; and 1/4096 lifts what would be halves, which OpenCV rounds up and others to even.
    Hence the loader and any device give the same pixels.
    """

    def maybe(chance: float, value: float, spread: float, centre: float) -> float:
        return centre + spread * (2.0 * value - 1.0) if chance < 0.5 else centre

    brightness = maybe(draw[0], draw[1], _BRIGHTNESS, 0.0)
    contrast = maybe(draw[2], draw[3], _FACTOR, 1.0)
    saturation = maybe(draw[4], draw[5], _FACTOR, 1.0)
    hue = math.radians(maybe(draw[6], draw[7], _HUE_DEGREES, 0.0))
    turn, lean = saturation * math.cos(hue), saturation * math.sin(hue)
    linear = contrast * _RGB @ np.array([[1, 0, 0], [0, turn, -lean], [0, lean, turn]]) @ _YIQ
    steps = np.round(np.column_stack([linear, linear @ np.full(3, brightness)]) * 1024)
    return np.asarray(steps / 1024 + _LIFT, np.float32)
