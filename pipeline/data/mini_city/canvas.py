"""Camera, light and canvas of the mini city: colour, label and depth are painted by the same geometry.

Everything stands in street coordinates: `s` metres to the right of the street's middle, `y` metres up,
`z` metres ahead of the camera; the curve of the street is part of the projection. Pictures are painted
twice as large as they are written, and averaged down, so that edges look photographed.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.data.labels import CITYSCAPES

Floats = NDArray[np.float32]
Color = tuple[float, float, float]
Points = list[tuple[float, float, float]]

OVERSAMPLING = 2
NEAR_M = 1.2
DARK: Color = (0.015, 0.015, 0.02)
"""Tyres, shoes and what lies in the deepest shadow."""
SKY_DEPTH_M = 1e4
LABEL = {**dict(zip(CITYSCAPES.names, CITYSCAPES.label_ids, strict=True)), "ego vehicle": 1, "static": 4}


def rgb(color: ArrayLike) -> Floats:
    """The colour, or colours, as an array to calculate with."""
    return np.asarray(color, np.float32)


_ROUGHNESS = np.full(256, 0.05, np.float32)
_ROUGHNESS[LABEL["vegetation"]] = 0.24  # leaves


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along the street; pixels are those of the oversampled canvas."""

    width: int
    height: int
    focal: float
    horizon: float
    """Row of the horizon."""
    eye_m: float
    """Height above the road."""
    s_m: float
    """Place across the street."""
    curve: float
    """Curvature of the street, 1/m; positive bends to the right."""

    def project(self, points_N3: ArrayLike) -> NDArray[np.float64]:
        """Pixels (column, row) of street points; points behind the camera are pulled in front of it."""
        s, y, z = np.asarray(points_N3, np.float64).T
        z = np.maximum(z, NEAR_M)
        pixels = np.empty((len(z), 2))
        pixels[:, 0] = self.width / 2 + self.focal * ((s - self.s_m) / z + 0.5 * self.curve * z)
        pixels[:, 1] = self.horizon + self.focal * (self.eye_m - y) / z
        return pixels

    def ground(self, first_row: int) -> tuple[Floats, Floats]:
        """Street coordinates s and z, (rows, columns), of the ground seen from that row downwards."""
        rows = np.arange(first_row, self.height, dtype=np.float32)[:, None]
        columns = np.arange(self.width, dtype=np.float32)[None] - self.width / 2
        z = self.focal * self.eye_m / (rows - self.horizon)
        s = columns * z / self.focal + self.s_m - 0.5 * self.curve * z * z
        return s.astype(np.float32), np.broadcast_to(z, s.shape).astype(np.float32)


@dataclass(frozen=True)
class Light:
    """The weather: what shines, from where, and how the photograph is developed."""

    to_sun: tuple[float, float, float]
    """Unit vector (s, y, z) towards the sun."""
    sun: Color
    """Light of the sun; black under clouds."""
    ambient: Color
    """Light of the sky."""
    sky_low: Color
    """Sky at the horizon, and the haze before it."""
    sky_high: Color
    """Sky overhead."""
    clouds: float
    """Share of the sky that clouds cover."""
    haze_m: float
    """Distance at which two thirds of the contrast are gone."""
    lamps: float
    """Share of windows and head lights that are lit."""
    cast: Color
    """Colour cast of the camera."""
    noise: float
    """Standard deviation of the sensor's noise, of 1."""

    def on(self, normal: tuple[float, float, float], sunlit: float = 1.0) -> Floats:
        """Light on a surface with that normal; `sunlit` 0 is in a shadow."""
        slope = max(0.0, float(np.dot(normal, self.to_sun)))
        sky = 0.75 + 0.25 * normal[1]
        return rgb(self.ambient) * np.float32(sky) + rgb(self.sun) * np.float32(slope * sunlit)

    def shadow_of(self, height_m: float) -> tuple[float, float]:
        """Where the shadow of a point at that height falls: steps along s and z, at most 25 m."""
        length = min(height_m / max(self.to_sun[1], 0.05), 25.0)
        return -self.to_sun[0] * length, -self.to_sun[2] * length


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell_px: float) -> Floats:
    """Random landscape of mean 0 and deviation 1, (height, width), with features of that size."""
    rows, columns = max(3, int(height / cell_px) + 2), max(3, int(width / cell_px) + 2)
    small = rng.standard_normal((rows, columns), dtype=np.float32)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


class Canvas:
    """Colour (linear light), label id and depth of a picture being painted from far to near."""

    def __init__(self, camera: Camera, light: Light, rng: np.random.Generator) -> None:
        self.camera = camera
        self.light = light
        shape = (camera.height, camera.width)
        self.color = np.zeros((*shape, 3), np.float32)
        self.label = np.zeros(shape, np.uint8)
        self.depth = np.full(shape, SKY_DEPTH_M, np.float32)
        self.sunlit = np.ones(shape, np.float32)
        self.grain = smooth_noise(rng, *shape, 1.6)
        self.plaster = 0.05 * smooth_noise(rng, 320, 320, 14) + 0.05 * smooth_noise(rng, 320, 320, 1.5)

    def sun_at(self, s: float, z: float) -> float:
        """How much sun reaches the ground there, 0..1."""
        column, row = self.camera.project([[s, 0.0, z]])[0]
        row, column = np.clip([row, column], 0, [self.camera.height - 1, self.camera.width - 1])
        return float(self.sunlit[int(row), int(column)])

    def fill(self, points_N3: ArrayLike, color: ArrayLike, label: str) -> None:
        """Paints a flat polygon of street points in one colour."""
        points = np.asarray(points_N3, np.float64)
        if points[:, 2].max() > NEAR_M:
            self.fill_pixels(self.camera.project(points), color, label, float(points[:, 2].mean()))

    def fill_many(self, outlines_MN3: NDArray[np.float64], colors_M3: Floats, label: str) -> None:
        """Paints polygons of street points, all at the distance of the first, each in its colour."""
        shape, z = outlines_MN3.shape[:2], float(outlines_MN3[0, 0, 2])
        if z > NEAR_M:
            pixels = self.camera.project(outlines_MN3.reshape(-1, 3)).reshape(*shape, 2)
            for outline, color in zip(pixels, colors_M3, strict=True):
                self.fill_pixels(outline, color, label, z)

    def fill_pixels(self, pixels_N2: NDArray[np.float64], color: ArrayLike, label: str, z: float) -> None:
        """Paints a polygon of pixels, a sixteenth of a pixel exact."""
        corners = [_sixteenths(pixels_N2)]
        r, g, b = (float(c) for c in np.asarray(color))
        cv2.fillPoly(self.color, corners, (r, g, b), shift=4)
        cv2.fillPoly(self.label, corners, (LABEL[label],), shift=4)
        cv2.fillPoly(self.depth, corners, (z,), shift=4)

    def fill_shadow(self, points_N2: ArrayLike) -> None:
        """Takes the sun from the hull of ground points (s, z)."""
        ground = np.insert(np.asarray(points_N2, np.float64), 1, 0.0, axis=1)
        hull = cv2.convexHull(_sixteenths(self.camera.project(ground)))
        cv2.fillConvexPoly(self.sunlit, hull, (0.0,), shift=4)

    def hang(self, texture_HW3: Floats, corners_43: ArrayLike, label: str) -> None:
        """Paints a picture over a vertical wall; corners go round from the top of the texture's left."""
        corners = np.asarray(corners_43, np.float64)
        pixels = self.camera.project(corners)
        low = np.floor(np.clip(pixels.min(0), 0, [self.camera.width, self.camera.height])).astype(int)
        high = np.ceil(np.clip(pixels.max(0) + 1, 0, [self.camera.width, self.camera.height])).astype(int)
        if np.any(high - low < 1) or corners[:, 2].max() <= NEAR_M:
            return
        texture = _at_most(texture_HW3, np.ptp(pixels, axis=0))
        height, width = texture.shape[:2]
        source = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
        matrix = cv2.getPerspectiveTransform(source, (pixels - low).astype(np.float32))
        size = (int(high[0] - low[0]), int(high[1] - low[1]))
        wall = cv2.warpPerspective(texture, matrix, size, borderMode=cv2.BORDER_REPLICATE)
        mask = np.zeros(size[::-1], np.uint8)
        cv2.fillPoly(mask, [_sixteenths(pixels - low)], (1,), shift=4)
        inside = mask.astype(bool)
        area = np.s_[low[1] : high[1], low[0] : high[0]]
        self.color[area][inside] = wall[inside]
        self.label[area][inside] = LABEL[label]
        self.depth[area][inside] = np.maximum(corners[:, 2], NEAR_M).mean()

    def develop(self, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The finished photograph (RGB uint8) and its label ids, at the size that is written."""
        veil = 1.0 - np.exp(-self.depth / self.light.haze_m)[..., None]
        veil[self.depth >= SKY_DEPTH_M] = 0.0
        color = self.color * (1.0 + _ROUGHNESS[self.label] * self.grain)[..., None]
        color += veil * (rgb(self.light.sky_low) - color)
        size = (self.camera.width // OVERSAMPLING, self.camera.height // OVERSAMPLING)
        photo = cv2.resize(color, size, interpolation=cv2.INTER_AREA)
        photo = np.clip(photo * rgb(self.light.cast), 0.0, 1.0) ** np.float32(1 / 1.8)
        photo += rng.standard_normal(photo.shape, dtype=np.float32) * np.float32(self.light.noise)
        image = np.clip(photo * 255.0 + 0.5, 0, 255).astype(np.uint8)
        return image, np.ascontiguousarray(self.label[::OVERSAMPLING, ::OVERSAMPLING])


def _sixteenths(pixels_N2: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.asarray(np.rint(np.clip(pixels_N2, -8000, 8000) * 16), np.int32)


def _at_most(texture_HW3: Floats, size_px: NDArray[np.float64]) -> Floats:
    """The texture, shrunk where the wall is smaller on the canvas: far windows must not flicker."""
    height, width = texture_HW3.shape[:2]
    size = (min(width, max(2, int(size_px[0]))), min(height, max(2, int(size_px[1]))))
    return np.asarray(cv2.resize(texture_HW3, size, interpolation=cv2.INTER_AREA), np.float32)


def rectangle(s: float, y: float, z: float, half_width: float, half_height: float) -> Points:
    """Corners of an upright rectangle around (s, y) at distance z."""
    return [(s - half_width, y - half_height, z), (s + half_width, y - half_height, z),
            (s + half_width, y + half_height, z), (s - half_width, y + half_height, z)]  # fmt: skip
