"""Training crops: a pure function of (image, label, seed, position).

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

PAD_RGB = (124, 116, 104)
"""ImageNet's mean colour: zero after the model's normalisation."""
AUGMENT_FORMAT = "augment/1"
"""Changes with anything that changes the pixels of a position."""

_TRIES = 10
_BRIGHTNESS = 32.0
_FACTOR = 0.5
_HUE_DEGREES = 18.0
# Luma and two colour differences (NTSC): hue turns the last two, saturation scales them.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = np.linalg.inv(_YIQ)


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


def augment(
    image_HW3: NDArray[np.uint8], label_HW: NDArray[np.uint8], config: DataConfig, seed: int, position: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The crop (h, w, 3) uint8 and its train ids (h, w) uint8, of exactly the configured crop size.

    The same arguments give the same crop in every process, thread and NumPy version.
    """
    # A fixed number of draws, all before the first use: what one of them decides shifts no other.
    draw = uniforms(raw_words(seed, Purpose.AUGMENT, (position, 0, 0), 10 + 2 * _TRIES)).tolist()
    settings = config.augment
    scale = settings.scale_min + draw[0] * (settings.scale_max - settings.scale_min)
    rows, columns = _choose_crop(label_HW, config, scale, draw[10:])
    image_hw3 = resize_image(image_HW3[rows.source, columns.source], rows.out, columns.out)
    if settings.photometric:
        image_hw3 = cv2.transform(image_hw3, _colour_matrix(draw[2:10])).astype(np.uint8, copy=False)
    # NEAREST_EXACT takes the nearest pixel centre as LINEAR does; plain NEAREST is half a pixel off.
    label_hw = cv2.resize(
        label_HW[rows.source, columns.source], (columns.out, rows.out), interpolation=cv2.INTER_NEAREST_EXACT
    )
    crop_hw3 = np.full((config.crop_height, config.crop_width, 3), PAD_RGB, np.uint8)
    crop_hw = np.full((config.crop_height, config.crop_width), IGNORE, np.uint8)
    target = (rows.target, columns.target)
    crop_hw3[target] = image_hw3
    crop_hw[target] = label_hw
    if settings.flip and draw[1] < 0.5:
        return np.ascontiguousarray(crop_hw3[:, ::-1]), np.ascontiguousarray(crop_hw[:, ::-1])
    return crop_hw3, crop_hw


def resize_image(image_HW3: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The picture at another size: averaged over areas when halved or smaller, else linear.

    Training crops and whole pictures come through here alike, so the network sees one kind of pixel.
    """
    shrinks = image_HW3.shape[0] >= 2 * height and image_HW3.shape[1] >= 2 * width
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image_HW3, (width, height), interpolation=interpolation), np.uint8)


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
    label_HW: NDArray[np.uint8], config: DataConfig, scale: float, draw: Sequence[float]
) -> tuple[_Span, _Span]:
    """Rows and columns of the first of ten crops in which no class takes too large a share, or the last."""
    height, width = label_HW.shape
    for first, second in zip(draw[0::2], draw[1::2], strict=True):
        rows = _span(height, scale * config.input_height, config.crop_height, first)
        columns = _span(width, scale * config.input_width, config.crop_width, second)
        if config.augment.max_class_share >= 1.0:
            break
        if _largest_share(label_HW[rows.source, columns.source]) <= config.augment.max_class_share:
            break
    return rows, columns


def _span(extent: int, scaled: float, crop: int, where: float) -> _Span:
    """One axis: a picture of `extent` pixels, to be seen as `scaled` pixels, through `crop` of them."""
    if scaled >= crop:
        length = min(extent, max(1, round(extent * crop / scaled)))
        return _Span(int(where * (extent - length + 1)), length, 0, crop)
    out = min(crop, max(1, round(scaled)))
    return _Span(0, extent, int(where * (crop - out + 1)), out)


def _largest_share(label_HW: NDArray[np.uint8]) -> float:
    """The share that the most frequent class has of the labelled pixels; 1 where there are none."""
    count = cv2.calcHist([label_HW], [0], None, [256], [0, 256])[:IGNORE]  # 255, ignored, is left out
    labelled = float(count.sum())
    return float(count.max()) / labelled if labelled else 1.0


def _colour_matrix(draw: Sequence[float]) -> NDArray[np.float64]:
    """The 3x4 map of brightness, then hue and saturation, then contrast; each happens half of the time."""

    def maybe(chance: float, value: float, spread: float, centre: float) -> float:
        return centre + spread * (2.0 * value - 1.0) if chance < 0.5 else centre

    brightness = maybe(draw[0], draw[1], _BRIGHTNESS, 0.0)
    contrast = maybe(draw[2], draw[3], _FACTOR, 1.0)
    saturation = maybe(draw[4], draw[5], _FACTOR, 1.0)
    hue = math.radians(maybe(draw[6], draw[7], _HUE_DEGREES, 0.0))
    turn, lean = saturation * math.cos(hue), saturation * math.sin(hue)
    linear = contrast * _RGB @ np.array([[1, 0, 0], [0, turn, -lean], [0, lean, turn]]) @ _YIQ
    return np.column_stack([linear, linear @ np.full(3, brightness)])
