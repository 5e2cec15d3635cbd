"""What stands still in the mini city: sky, ground, buildings, and the shadows they throw.

Colours of road and sidewalk, and of facades, cars and clothes, are drawn from shared palettes on
purpose: what tells the classes apart is texture, shape and place, which a network must learn to see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.data.mini_city.canvas import LABEL, SKY_DEPTH_M, Canvas, Color, Floats, rgb, smooth_noise

STREET_END_M = 110.0
TEXTURE_PX_PER_M = 10.0

PAINTS: tuple[Color, ...] = (
    (0.42, 0.15, 0.10), (0.55, 0.42, 0.27), (0.60, 0.55, 0.45), (0.30, 0.30, 0.31), (0.62, 0.62, 0.60),
    (0.52, 0.36, 0.12), (0.24, 0.32, 0.22), (0.24, 0.32, 0.42), (0.16, 0.15, 0.15), (0.34, 0.22, 0.15),
    (0.13, 0.17, 0.28), (0.20, 0.19, 0.18), (0.56, 0.05, 0.04), (0.04, 0.15, 0.46), (0.70, 0.49, 0.05),
)  # fmt: skip
"""Shared by facades, cars, clothes and, the last three, traffic signs (linear light)."""
PAVINGS: tuple[Color, ...] = (
    (0.16, 0.16, 0.17), (0.22, 0.22, 0.23), (0.28, 0.27, 0.26), (0.24, 0.21, 0.19), (0.33, 0.31, 0.29),
)  # fmt: skip
"""Shared by roads and sidewalks."""
GRASS: tuple[Color, ...] = ((0.14, 0.20, 0.06), (0.20, 0.21, 0.09), (0.26, 0.23, 0.15))

BuildingKind = Literal["flats", "offices", "houses"]


@dataclass(frozen=True)
class Building:
    """A box beside the street; `side` is -1 on the left, 1 on the right."""

    side: int
    z0: float
    z1: float
    height: float
    wall: Color
    kind: BuildingKind
    end_wall: bool
    """Its wall towards the camera rises over the neighbour, or stands free."""


@dataclass(frozen=True)
class Street:
    """The ground plan: half-widths and widths in metres, from the middle outwards."""

    half_road: float
    verge: float
    """Grass between road and sidewalk; 0 is none."""
    sidewalk: float
    crossing_z: float
    """Where a zebra crossing begins."""
    dashed: bool
    """Dashed middle line, otherwise a solid one."""
    front_garden: float
    """Grass between sidewalk and facades."""
    buildings: tuple[Building, ...]

    @property
    def facade(self) -> float:
        """Distance of the facades from the middle."""
        return self.half_road + self.verge + self.sidewalk + self.front_garden


def paint_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paints a gradient with clouds over the whole canvas."""
    camera, light = canvas.camera, canvas.light
    up = np.clip(1.0 - np.arange(camera.height, dtype=np.float32) / camera.horizon, 0, 1)[:, None, None]
    sky = rgb(light.sky_low) * (1 - up) + rgb(light.sky_high) * up
    sky = np.broadcast_to(sky, canvas.color.shape)
    shape = (camera.height, camera.width)
    billows = smooth_noise(rng, *shape, 90) + 0.5 * smooth_noise(rng, *shape, 28)
    cover = np.clip((billows + 3.0 * light.clouds - 1.5) * 0.7, 0, 1)[..., None] * min(1.0, 2 * light.clouds)
    bright = rgb(light.sky_low) * (1.04 + 0.05 * smooth_noise(rng, *shape, 40)[..., None])
    canvas.color[:] = sky + cover * (bright - sky)
    canvas.label[:] = LABEL["sky"]
    canvas.depth[:] = SKY_DEPTH_M


def paint_skyline(canvas: Canvas, rng: np.random.Generator, foliage: Color) -> None:
    """Paints what closes the view at the horizon: far roofs and tree tops."""
    camera = canvas.camera
    column = -20.0
    while column < camera.width:
        trees = rng.random() < 0.5
        width = rng.uniform(14, 46)
        top = camera.horizon - rng.uniform(5, 15 if trees else 26)
        if trees:
            turn = np.linspace(0, np.pi, 9)
            outline = np.stack([column + width * (0.5 - 0.62 * np.cos(turn)),
                                camera.horizon + 2 - (camera.horizon - top) * np.sin(turn)], 1)  # fmt: skip
        else:
            left, right = column, column + width
            outline = np.array([[left, camera.horizon + 2], [left, top], [right, top],
                                [right, camera.horizon + 2]])  # fmt: skip
        color = rgb(foliage if trees else PAINTS[rng.integers(len(PAINTS))])
        color = color * canvas.light.on((0, 0.3, -0.95), 0.6)
        canvas.fill_pixels(outline, color, "vegetation" if trees else "building", STREET_END_M)
        column += width * rng.uniform(0.6, 0.95)


def cast_building_shadows(canvas: Canvas, street: Street) -> None:
    """Takes the sun from the ground behind buildings that stand between it and the sun."""
    for building in street.buildings:
        if building.side * canvas.light.to_sun[0] <= 0:
            continue
        ds, dz = canvas.light.shadow_of(building.height)
        foot = building.side * street.facade
        canvas.fill_shadow(
            [(foot, building.z0), (foot, building.z1), (foot + ds, building.z0 + dz),
             (foot + ds, building.z1 + dz)]
        )  # fmt: skip


def paint_ground(
    canvas: Canvas, street: Street, road: Color, paving: Color, rng: np.random.Generator
) -> None:
    """Paints road with marks, curbs, sidewalks with slabs, and grass, lit as the shadows say."""
    camera = canvas.camera
    first = int(np.ceil(camera.horizon)) + 1
    s, z = camera.ground(first)
    near = np.exp(-z / 14.0)  # texture fades before it would flicker
    grain = canvas.grain[first:]
    stains = _sample(smooth_noise(rng, 256, 256, 12), s * 6, z * 3)
    color = rgb(road) * (1 + near * (0.10 * grain + 0.05 * stains))[..., None]
    color = _paint_marks(color, street, s, z, stains)
    outwards = np.abs(s) - street.half_road
    label = np.full(s.shape, LABEL["road"], np.uint8)
    slabs = (_frac(s, 0.9, 0.07 + z / 300) | _frac(z, 0.9, 0.05 + z / 150)) & (z < 30)
    tiles = rgb(paving) * (1 + 0.06 * near * stains - 0.50 * slabs)[..., None]
    grass = rgb(GRASS[rng.integers(len(GRASS))])
    lawn = grass * (1 + (0.10 + 0.30 * near) * grain + 0.12 * stains)[..., None]
    inner, outer = street.verge, street.verge + street.sidewalk
    walk = (outwards > inner) & (outwards <= outer)
    green = ((outwards > 0) & (outwards <= inner)) | (outwards > outer)
    color[walk], label[walk] = tiles[walk], LABEL["sidewalk"]
    color[green], label[green] = lawn[green], LABEL["terrain"]
    curb = (outwards > 0) & (outwards < 0.22)
    color[curb], label[curb] = (rgb(paving) * 1.25)[None], LABEL["sidewalk"]
    sun = cv2.GaussianBlur(canvas.sunlit, (0, 0), 1.2)[first:, :, None]
    shade = canvas.light.on((0, 1, 0), 0.0)
    color *= shade + sun * (canvas.light.on((0, 1, 0)) - shade)
    canvas.color[first:], canvas.label[first:], canvas.depth[first:] = color, label, z


def _paint_marks(color: Floats, street: Street, s: Floats, z: Floats, stains: Floats) -> Floats:
    white = rgb([0.62, 0.62, 0.58])
    middle = (np.abs(s) < 0.10) & (_frac(z, 6.0, 3.0) if street.dashed else True)
    edges = np.abs(np.abs(s) - street.half_road + 0.45) < 0.07
    lanes = (np.abs(np.abs(s) - street.half_road / 2) < 0.08) & _frac(z, 6.0, 2.4) & (street.half_road > 6)
    ahead = z - street.crossing_z
    zebra = (ahead > 0) & (ahead < 3.0) & _frac(s, 1.0, 0.5) & (np.abs(s) < street.half_road - 0.3)
    between = (ahead < -0.8) | (ahead > 3.8)
    marks = zebra | ((middle | edges | lanes) & between)
    worn = (stains < 1.1)[..., None]
    return np.asarray(np.where(marks[..., None] & worn, 0.35 * color + 0.65 * white, color), np.float32)


def _frac(values: Floats, period: float, part: ArrayLike) -> NDArray[np.bool_]:
    return np.asarray(np.mod(values, period) < part, np.bool_)


def _sample(noise: Floats, columns: Floats, rows: Floats) -> Floats:
    size = noise.shape[0]
    sampled: Floats = noise[rows.astype(np.intp) % size, columns.astype(np.intp) % size]
    return sampled


def paint_building(canvas: Canvas, street: Street, building: Building, rng: np.random.Generator) -> None:
    """Paints the end wall, the roof (of houses) and the facade of a building."""
    foot, z0, z1, top = building.side * street.facade, building.z0, building.z1, building.height
    back = foot + building.side * 9.0
    gable = 3.2 if building.kind == "houses" else 0.0
    near = max(z0, 1.3)
    if building.end_wall and z0 > near - 1:
        end = _wall_texture(canvas, building, 9.0, canvas.light.on((0, 0, -1), 0.5), rng)
        canvas.hang(end, [(foot, top, near), (back, top, near), (back, 0, near), (foot, 0, near)], "building")
    if gable:
        tiles = rgb([0.26, 0.13, 0.09]) * rng.uniform(0.5, 1.2)
        ridge = foot + building.side * 4.5
        lit = canvas.light.on((-0.6 * building.side, 0.8, 0))
        canvas.fill([(foot, top, near), (ridge, top + gable, near), (back, top, near)],
                    rgb(building.wall) * canvas.light.on((0, 0, -1), 0.5), "building")  # fmt: skip
        seen_from_above = abs(foot - canvas.camera.s_m) * gable / 4.5 > top - canvas.camera.eye_m
        if seen_from_above:
            canvas.fill([(foot, top, near), (ridge, top + gable, near), (ridge, top + gable, z1),
                         (foot, top, z1)], tiles * lit, "building")  # fmt: skip
    texture = _wall_texture(canvas, building, z1 - z0, canvas.light.on((-building.side, 0, 0)), rng)
    start = int(max(0.0, (near - z0) / (z1 - z0)) * texture.shape[1])
    corners = [(foot, top, near), (foot, top, z1), (foot, 0, z1), (foot, 0, near)]
    canvas.hang(texture[:, start:], corners, "building")


def _wall_texture(
    canvas: Canvas, building: Building, length: float, lit: Floats, rng: np.random.Generator
) -> Floats:
    width, height = int(length * TEXTURE_PX_PER_M), int(building.height * TEXTURE_PX_PER_M)
    wall = np.empty((height, width, 3), np.float32)
    wall[:] = rgb(building.wall) * (1 + canvas.plaster[:height, :width])[..., None]
    if building.kind != "offices":
        wall[::4] *= 0.88  # courses of bricks
    wall[:6] *= 1.25  # cornice
    wall[-7:] *= 0.7  # plinth
    wall *= lit
    floor = {"flats": 31, "offices": 36, "houses": 28}[building.kind]
    pane_width = {"flats": 12, "offices": 40, "houses": 14}[building.kind]
    pitch = {"flats": 24, "offices": 43, "houses": 34}[building.kind]
    glass = rgb(canvas.light.sky_high) * 0.30 * float(np.mean(lit)) + 0.02
    margin = (width - pane_width) % pitch // 2
    for row in range(10, height - floor, floor):
        for column in range(max(2, margin), width - pane_width, pitch):
            pane = (column, row, pane_width, 18 if building.kind != "offices" else 21)
            _paint_window(wall, pane, glass, canvas.light.lamps, rng)
    _paint_ground_floor(wall, building.kind, glass, canvas.light.lamps, rng)
    return wall


def _paint_window(
    wall: Floats, pane: tuple[int, int, int, int], glass: Floats, lamps: float, rng: np.random.Generator
) -> None:
    column, row, width, height = pane
    frame = wall[row - 1 : row + height + 1, column - 1 : column + width + 1]
    frame *= 1.5
    lit = rng.random() < lamps
    color = rgb([0.95, 0.70, 0.34]) * rng.uniform(0.5, 1) if lit else glass * rng.uniform(0.5, 1.6)
    wall[row : row + height, column : column + width] = color
    wall[row : row + height, column + width // 2] *= 0.6
    wall[row + height : row + height + 2, column - 1 : column + width + 1] *= 0.6  # shadow of the sill


def _paint_ground_floor(
    wall: Floats, kind: BuildingKind, glass: Floats, lamps: float, rng: np.random.Generator
) -> None:
    height, width = wall.shape[:2]
    top = height - 25
    for column in range(6, width - 26, 30):
        if kind == "houses" or rng.random() < 0.35:
            door = rgb(PAINTS[rng.integers(len(PAINTS))]) * 0.5
            wall[top + 2 :, column + 6 : column + 17] = door * wall[top:, column : column + 1].mean()
            continue
        lit = rng.random() < lamps
        wall[top : height - 5, column : column + 23] = rgb([0.9, 0.72, 0.4]) if lit else glass * 0.8
        awning = rgb(PAINTS[rng.integers(len(PAINTS))]) * float(wall[top - 2].mean()) * 2.5
        wall[top - 5 : top, column - 2 : column + 25] = awning
