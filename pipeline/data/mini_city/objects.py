"""What stands and moves in the mini city: cars, persons, trees, poles and signs, with their shadows.

Each object is placed by its foot (s, z) on the ground; `shadow` darkens the ground before it is
painted, `paint` draws the object itself. Objects are painted from far to near.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike

from pipeline.data.mini_city.canvas import DARK, Canvas, Color, Floats, rectangle, rgb


class Thing(Protocol):
    """Anything with a place on the ground."""

    @property
    def z(self) -> float:
        """Distance of its near end, metres."""

    def shadow(self, canvas: Canvas) -> None:
        """Takes the sun from the ground behind it."""

    def paint(self, canvas: Canvas, rng: np.random.Generator) -> None:
        """Paints it over what is farther away."""


@dataclass(frozen=True)
class Person:
    """A person who walks or stands."""

    s: float
    z: float
    height: float
    stride: float
    """Half the distance of the feet, metres."""
    coat: Color
    trousers: Color
    skin: Color
    lean: int
    """Direction of the step, -1 or 1."""

    def shadow(self, canvas: Canvas) -> None:
        """A narrow strip away from the sun."""
        ds, dz = canvas.light.shadow_of(self.height)
        canvas.fill_shadow([(self.s - 0.2, self.z), (self.s + 0.2, self.z), (self.s + ds, self.z + dz)])

    def paint(self, canvas: Canvas, rng: np.random.Generator) -> None:
        """Legs, arms, coat and head."""
        light = canvas.light.on((0.3, 0.2, -0.93), canvas.sun_at(self.s, self.z - 0.4)) + 0.03
        h, step = self.height, self.stride * self.lean
        coat, trousers = rgb(self.coat) * light, rgb(self.trousers) * light
        skin = rgb(self.skin) * light
        for foot, shade in ((-step, 0.75), (step, 1.0)):
            self._limb(canvas, (0.07 * np.sign(foot), 0.48 * h), (foot, 0.06), (0.12, 0.09), trousers * shade)
            self._limb(canvas, (foot - 0.04, 0.05), (foot + 0.12 * self.lean, 0.04), (0.06, 0.05),
                       rgb(DARK) * 2)  # fmt: skip
        swing = step * 0.9
        self._limb(canvas, (-0.2, 0.78 * h), (-0.22 - swing * 0.6, 0.47 * h), (0.08, 0.06), coat * 0.7)
        torso = [(-0.24, 0.80), (0.24, 0.80), (0.25, 0.62), (0.22, 0.44), (-0.22, 0.44), (-0.25, 0.62)]
        self._part(canvas, [(x, y * h) for x, y in torso], coat)
        for band in (0.56, 0.68):  # a knitted pattern
            self._limb(canvas, (-0.23, band * h), (0.23, band * h), (0.05, 0.05), coat * 1.6 + 0.03)
        self._limb(canvas, (0.2, 0.78 * h), (0.22 + swing * 0.6, 0.47 * h), (0.08, 0.06), coat * 0.85)
        self._limb(canvas, (0, 0.79 * h), (0, 0.86 * h), (0.06, 0.06), skin)
        turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        head = np.stack([0.115 * np.cos(turn), 0.915 * h + 0.15 * np.sin(turn)], 1)
        self._part(canvas, [(float(x), float(y)) for x, y in head], skin)
        hair = [(float(x) * 1.1, float(y) + 0.02) for x, y in head[:7]]
        self._part(canvas, hair, rgb(self.trousers) * 0.4 * light)

    def _limb(
        self, canvas: Canvas, start: tuple[float, float], end: tuple[float, float],
        half_widths: tuple[float, float], color: ArrayLike,
    ) -> None:  # fmt: skip
        a, b = np.array(start), np.array(end)
        along = (b - a) / max(float(np.hypot(*(b - a))), 1e-6)
        across = np.array([-along[1], along[0]])
        corners = [a + across * half_widths[0], b + across * half_widths[1],
                   b - across * half_widths[1], a - across * half_widths[0]]  # fmt: skip
        self._part(canvas, [(float(x), float(y)) for x, y in corners], color)

    def _part(self, canvas: Canvas, outline: list[tuple[float, float]], color: ArrayLike) -> None:
        canvas.fill([(self.s + x, y, self.z) for x, y in outline], color, "person")


@dataclass(frozen=True)
class Tree:
    """A street tree or, with a low crown and no trunk, a bush."""

    s: float
    z: float
    crown_y: float
    radius: float
    foliage: Color

    def shadow(self, canvas: Canvas) -> None:
        """The crown as an ellipse on the ground."""
        ds, dz = canvas.light.shadow_of(self.crown_y)
        turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        canvas.fill_shadow(
            [
                (self.s + ds + self.radius * 0.9 * np.cos(t), self.z + dz + self.radius * 0.9 * np.sin(t))
                for t in turn
            ]
        )
        canvas.fill_shadow([(self.s - 0.15, self.z), (self.s + 0.15, self.z), (self.s + ds, self.z + dz)])

    def paint(self, canvas: Canvas, rng: np.random.Generator) -> None:
        """A trunk, then clumps of leaves that are lighter towards the sun."""
        bark = rgb([0.14, 0.10, 0.07]) * canvas.light.on((0.4, 0, -0.9), canvas.sun_at(self.s, self.z - 1))
        half = 0.09 + 0.04 * self.radius
        middle = self.crown_y / 2
        canvas.fill(rectangle(self.s, middle, self.z, half, middle), bark, "vegetation")
        leaves = rgb(self.foliage)
        to_sun = np.array(canvas.light.to_sun)
        clumps, bumps = (34 if self.z < 30 else 20), np.linspace(0, 2 * np.pi, 11, endpoint=False)
        turn, reach = rng.uniform(0, 2 * np.pi, clumps), np.sqrt(rng.uniform(0, 1, clumps))
        across, up = reach * np.cos(turn), reach * np.sin(turn)
        towards = np.clip(across * to_sun[0] + up * to_sun[1], -0.8, 1.0)
        ragged = self.radius * rng.uniform(0.22, 0.42, (clumps, 1)) * rng.uniform(0.7, 1.15, (clumps, 11))
        tones = 0.55 + 0.28 * np.maximum(towards, 0.0) + rng.uniform(0, 0.40, clumps)
        outlines = np.full((clumps, 11, 3), self.z)
        outlines[..., 0] = self.s + self.radius * across[:, None] + ragged * np.cos(bumps)
        outlines[..., 1] = self.crown_y + 0.9 * self.radius * up[:, None] + ragged * np.sin(bumps)
        dark, bright = (canvas.light.on((0, tilt, -0.6)) for tilt in (0.0, 0.9))
        light = dark + (bright - dark) * rgb(towards + 0.8)[:, None] / 1.8
        order = np.argsort(towards)
        canvas.fill_many(outlines[order], (leaves * light * rgb(tones)[:, None])[order], "vegetation")


@dataclass(frozen=True)
class Post:
    """A street lamp or a traffic sign on its pole."""

    s: float
    z: float
    kind: Literal["lamp", "round", "triangle", "diamond", "board"]
    metal: Color
    face: Color
    """Main colour of the sign."""
    rim: Color

    def shadow(self, canvas: Canvas) -> None:
        """A thin strip, with a blot for a sign."""
        ds, dz = canvas.light.shadow_of(6.0 if self.kind == "lamp" else 2.4)
        canvas.fill_shadow([(self.s - 0.1, self.z), (self.s + 0.1, self.z), (self.s + ds - 0.1, self.z + dz),
                            (self.s + ds + 0.1, self.z + dz)])  # fmt: skip

    def paint(self, canvas: Canvas, rng: np.random.Generator) -> None:
        """The pole, its lit and its dark half, then the lamp or sign."""
        sun = canvas.sun_at(self.s, self.z - 0.5)
        top, half = (6.0, 0.19) if self.kind == "lamp" else (2.1, 0.17)
        metal = rgb(self.metal)
        for side in (-0.5, 0.5):
            light = canvas.light.on((1.6 * side, 0, -0.6), sun)
            half_pole = rectangle(self.s + side * half, top / 2, self.z, half / 2, top / 2)
            canvas.fill(half_pole, metal * light, "pole")
        light = canvas.light.on((0, 0.2, -0.98), max(sun, 0.5))
        if self.kind == "lamp":
            towards = -1.0 if self.s > 0 else 1.0
            canvas.fill([(self.s, top - 0.5, self.z), (self.s + towards * 1.5, top, self.z),
                         (self.s + towards * 1.5, top + 0.45, self.z), (self.s, top, self.z)],
                        metal * light, "pole")  # fmt: skip
            glow = rgb([1.0, 0.8, 0.45]) if canvas.light.lamps > 0.1 else metal * light * 1.6
            canvas.fill(rectangle(self.s + towards * 1.7, top + 0.28, self.z, 0.6, 0.2), glow, "pole")
            return
        self._paint_sign(canvas, np.maximum(light, np.float32(0.55)))  # signs throw head lights back

    def _paint_sign(self, canvas: Canvas, light: Floats) -> None:
        corners = {"round": 20, "triangle": 3, "diamond": 4, "board": 4}[self.kind]
        first = np.pi / 4 if self.kind == "board" else np.pi / 2
        turn = first + np.linspace(0, 2 * np.pi, corners, endpoint=False)
        shape = np.stack([np.cos(turn), np.sin(turn)], 1) * (0.90 if self.kind == "triangle" else 0.74)
        shape *= [1.6, 1.0] if self.kind == "board" else [1.0, 1.0]
        for scale, color in ((1.0, self.rim), (0.74, self.face)):
            canvas.fill([(self.s + scale * x, 2.65 + scale * y, self.z - 0.05) for x, y in shape],
                        rgb(color) * light, "traffic sign")  # fmt: skip
        mark = rgb(self.rim) * light
        bar = (0.34, 0.09) if self.kind == "board" else (0.08, 0.2)
        canvas.fill(rectangle(self.s, 2.62, self.z - 0.06, *bar), mark, "traffic sign")


@dataclass(frozen=True)
class Bin:
    """A litter bin or crate: ignored in scoring, as Cityscapes' `static` is."""

    s: float
    z: float
    color: Color

    def shadow(self, canvas: Canvas) -> None:
        """Its footprint, swept."""
        ds, dz = canvas.light.shadow_of(0.9)
        foot = [(self.s - 0.3, self.z), (self.s + 0.3, self.z)]
        canvas.fill_shadow(foot + [(s + ds, z + dz) for s, z in foot])

    def paint(self, canvas: Canvas, rng: np.random.Generator) -> None:
        """A box with a lid."""
        color = rgb(self.color) * canvas.light.on((0, 0.3, -0.95), canvas.sun_at(self.s, self.z - 0.4))
        canvas.fill(rectangle(self.s, 0.45, self.z, 0.3, 0.45), color, "static")
        canvas.fill(rectangle(self.s, 0.93, self.z, 0.34, 0.06), color * 0.6, "static")
