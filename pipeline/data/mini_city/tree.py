"""The mini city's files: pictures and label ids in Cityscapes' layout, from a seed."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.mini_city.canvas import Canvas, rgb
from pipeline.data.mini_city.objects import Thing
from pipeline.data.mini_city.plan import TRAIN, VAL, Family, aim_camera, draw_light, place_things, plan_street
from pipeline.data.mini_city.street import (
    PAINTS,
    PAVINGS,
    Building,
    cast_building_shadows,
    paint_building,
    paint_ground,
    paint_sky,
    paint_skyline,
)
from pipeline.errors import DatasetError

logger = logging.getLogger(__name__)


class MiniCityReport(NamedTuple):
    """What was written."""

    train: int
    val: int


def make_mini_city(out: Path, train: int = 240, val: int = 48, seed: int = 0) -> MiniCityReport:
    """Writes the tree, whole or not at all, and returns its counts of pictures.

    Raises DatasetError where `out` holds files already: a mixture of two cities is never made.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} is not an empty folder; give --out a new one or remove it first")
    logger.info("[city]  drawing %d streets, half a minute or less", train + val)
    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a drawing that was cut off
    for split, families, count in (("train", TRAIN, train), ("val", VAL, val)):
        for index in range(count):
            family = families[index % len(families)]
            stem = f"{family.city}_{index // len(families):06d}_000019"
            image, label = render_scene(family, np.random.default_rng([seed, index, split == "val"]))
            _write(part / "leftImg8bit" / split / family.city / f"{stem}_leftImg8bit.png", image[..., ::-1])
            _write(part / "gtFine" / split / family.city / f"{stem}_gtFine_labelIds.png", label)
    if out.exists():
        out.rmdir()
    part.rename(out)
    return MiniCityReport(train, val)


def _write(path: Path, picture: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), np.ascontiguousarray(picture)):
        raise DatasetError(f"cannot write {path}; is there space, and is the folder writable?")


def render_scene(family: Family, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A photograph (RGB uint8, 128x256) and its label ids (uint8) of a street of that city."""
    street = plan_street(family, rng)
    canvas = Canvas(aim_camera(family, street, rng), draw_light(family, rng), rng)
    foliage = family.foliage[rng.integers(len(family.foliage))]
    things = place_things(family, street, rng)
    road, paving = (PAVINGS[i] for i in rng.choice(len(PAVINGS), 2))
    if canvas.light.sun[0] > 0:
        cast_building_shadows(canvas, street)
        for thing in things:
            thing.shadow(canvas)
    paint_sky(canvas, rng)
    paint_skyline(canvas, rng, foliage)
    paint_ground(canvas, street, road, paving, rng)
    # A building is as far as its far end, so that on a bend it hides what stands behind it and no more.
    layers: list[tuple[float, Building | Thing]] = [(b.z1, b) for b in street.buildings]
    layers += [(thing.z, thing) for thing in things]
    for _, layer in sorted(layers, key=lambda pair: -pair[0]):
        if isinstance(layer, Building):
            paint_building(canvas, street, layer, rng)
        else:
            layer.paint(canvas, rng)
    if family.hood:
        _paint_hood(canvas, rng)
    return canvas.develop(rng)


def _paint_hood(canvas: Canvas, rng: np.random.Generator) -> None:
    width, height = canvas.camera.width, canvas.camera.height
    turn = np.linspace(0, np.pi, 24)
    rise = rng.uniform(0.05, 0.09) * height
    outline = np.stack([width * (0.5 - 0.62 * np.cos(turn)), height + 2 - rise * np.sin(turn) ** 0.6], 1)
    color = rgb(PAINTS[rng.integers(len(PAINTS))]) * 0.6 * canvas.light.on((0, 0.9, -0.4))
    canvas.fill_pixels(outline, color + 0.10 * rgb(canvas.light.sky_high), "ego vehicle", 1.0)
