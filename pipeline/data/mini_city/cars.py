"""Cars of the mini city: a side view, drawn out to a body with panes, wheels and lights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.data.mini_city.canvas import DARK, Canvas, Color, Floats, rectangle, rgb

# Side views, rear to front, as (z, y) in metres; the edges named in _GLASS are panes.
_PROFILES: dict[str, tuple[tuple[float, float], ...]] = {
    "sedan": (
        (0, 0.3),
        (0, 0.86),
        (0.7, 0.95),
        (1.25, 1.42),
        (2.5, 1.44),
        (3.25, 0.95),
        (4.3, 0.78),
        (4.35, 0.3),
    ),
    "hatch": (
        (0, 0.3),
        (0, 0.80),
        (0.1, 0.98),
        (0.5, 1.48),
        (2.3, 1.52),
        (3.1, 0.98),
        (3.9, 0.82),
        (3.95, 0.3),
    ),
    "van": (
        (0, 0.35),
        (0, 0.90),
        (0.05, 1.1),
        (0.2, 1.90),
        (3.4, 1.92),
        (4.0, 1.1),
        (4.6, 0.95),
        (4.65, 0.35),
    ),
}
_GLASS = (2, 4)


@dataclass(frozen=True)
class Car:
    """A parked or driving car."""

    s: float
    z: float
    paint_color: Color
    profile: Literal["sedan", "hatch", "van"]
    oncoming: bool

    @property
    def outline(self) -> NDArray[np.float64]:
        """Side view, (z, y) on the street, near to far."""
        points = np.array(_PROFILES[self.profile])
        length = points[-1, 0]
        points[:, 0] = length - points[:, 0] if self.oncoming else points[:, 0]
        points[:, 0] += self.z
        return points

    def shadow(self, canvas: Canvas) -> None:
        """The footprint, swept to where the roof's shadow falls."""
        near, far = self.outline[:, 0].min(), self.outline[:, 0].max()
        ds, dz = canvas.light.shadow_of(1.35) if sum(canvas.light.sun) > 0 else (0.0, 0.0)
        foot = [(self.s + side, z) for side in (-0.9, 0.9) for z in (near, far)]
        canvas.fill_shadow(foot + [(s + ds, z + dz) for s, z in foot])

    def paint(self, canvas: Canvas, rng: np.random.Generator) -> None:
        """Body, panes, wheels and lights."""
        outline, sun = self.outline, canvas.sun_at(self.s, self.z - 1.0)
        left, right = self.s - 0.88, self.s + 0.88
        near, far = outline[:, 0].min(), outline[:, 0].max()
        floor = [(left, 0.02, near), (right, 0.02, near), (right, 0.02, far), (left, 0.02, far)]
        canvas.fill(floor, rgb(DARK) + 0.02, "road")
        body = rgb(self.paint_color)
        sky = rgb(canvas.light.sky_high)
        edges = sorted(range(len(outline) - 1), key=lambda i: -float(outline[i : i + 2, 0].mean()))
        for i in edges:
            (z0, y0), (z1, y1) = outline[i], outline[i + 1]
            run, rise = (z1 - z0, y1 - y0) if not self.oncoming else (z0 - z1, y1 - y0)
            length = float(np.hypot(run, rise)) or 1.0
            facing = -rise / length if not self.oncoming else rise / length
            light = canvas.light.on((0.0, max(0.0, float(run) / length), float(facing)), sun)
            color = sky * 0.22 + 0.015 if i in _GLASS else body * light + 0.05 * sky * max(0.0, run / length)
            canvas.fill([(left, y0, z0), (right, y0, z0), (right, y1, z1), (left, y1, z1)], color, "car")
        self._paint_side(canvas, outline, body, sun)
        self._paint_end(canvas, near)

    def _paint_side(self, canvas: Canvas, outline: NDArray[np.float64], body: Floats, sun: float) -> None:
        seen_left = canvas.camera.project([[self.s, 0, self.z]])[0, 0] > canvas.camera.width / 2
        s = self.s - 0.88 if seen_left else self.s + 0.88
        light = canvas.light.on((-1.0 if seen_left else 1.0, 0, 0), sun)
        canvas.fill([(s, y, z) for z, y in outline], body * light, "car")
        cabin = outline[2:6].mean(0) + np.array([0, 0.02])
        panes = cabin + (outline[2:6] - cabin) * np.array([0.86, 0.74]) + np.array([0, 0.03])
        glass = rgb(canvas.light.sky_high) * 0.18 + 0.015
        canvas.fill([(s, y, z) for z, y in panes], glass, "car")
        pillar = float(cabin[0])
        canvas.fill([(s, y, pillar + d) for y, d in ((0.9, -0.05), (1.4, -0.05), (1.4, 0.05), (0.9, 0.05))],
                    body * light, "car")  # fmt: skip
        turn = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        low, high = outline[:, 0].min(), outline[:, 0].max()
        for hub in (low + 0.85, high - 0.85):
            for radius, color in ((0.33, rgb(DARK)), (0.17, 0.25 * light + 0.02)):
                canvas.fill(
                    [(s, 0.33 + radius * np.sin(t), hub + radius * np.cos(t)) for t in turn], color, "car"
                )

    def _paint_end(self, canvas: Canvas, z: float) -> None:
        lamps = canvas.light.lamps > 0.1
        if self.oncoming:
            color = rgb([1.0, 0.95, 0.8]) if lamps else rgb([0.45, 0.45, 0.42])
        else:
            color = rgb([0.9, 0.05, 0.03]) * (1.0 if lamps else 0.4)
        z -= 0.02
        for s in (self.s - 0.68, self.s + 0.68):
            canvas.fill(rectangle(s, 0.72, z, 0.17, 0.09), color, "car")
        canvas.fill(rectangle(self.s, 0.55, z, 0.26, 0.06), canvas.light.on((0, 0, -1)) * 0.6, "car")
        canvas.fill(rectangle(self.s, 0.36, z, 0.86, 0.05), DARK, "car")
