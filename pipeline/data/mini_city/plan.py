"""What a scene of the mini city holds, drawn before a pixel is painted: families, weather, places.

A family is a city: its streets, its weather and its camera. Training and validation share no family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.data.mini_city.canvas import OVERSAMPLING, Camera, Color, Light
from pipeline.data.mini_city.cars import Car
from pipeline.data.mini_city.objects import Bin, Person, Post, Thing, Tree
from pipeline.data.mini_city.street import PAINTS, Building, BuildingKind, Street

WIDTH_PX, HEIGHT_PX = 256, 128
Range = tuple[float, float]


@dataclass(frozen=True)
class Family:
    """A city: what its streets, its weather and its camera have in common."""

    city: str
    horizon: Range
    """Share of the picture's height above the horizon."""
    curve: Range
    """Curvature of the street, 1/m, of either sign."""
    half_road: Range
    sidewalk: Range
    kinds: tuple[BuildingKind, ...]
    heights: Range
    weather: tuple[str, ...]
    foliage: tuple[Color, ...]
    hood: bool
    """The camera sees the bonnet of its own car (label `ego vehicle`)."""


GREEN: tuple[Color, ...] = ((0.12, 0.20, 0.05), (0.16, 0.22, 0.06), (0.09, 0.16, 0.07))
AUTUMN: tuple[Color, ...] = ((0.34, 0.22, 0.05), (0.30, 0.12, 0.05), (0.22, 0.19, 0.07))

TRAIN = (
    Family("aldebrook", (0.40, 0.48), (0.0, 0.004), (3.6, 5.0), (2.6, 3.8), ("flats",), (8, 17),
           ("clear", "cloudy"), GREEN, True),
    Family("fernwick", (0.42, 0.50), (0.0, 0.006), (3.4, 4.6), (2.4, 3.4), ("houses",), (4.5, 7.5),
           ("clear", "hazy"), GREEN + AUTUMN, False),
    Family("marisol", (0.38, 0.46), (0.0, 0.003), (4.2, 5.6), (2.8, 4.2), ("flats", "houses"), (6, 15),
           ("clear", "hazy", "cloudy"), GREEN, True),
    Family("tannhaven", (0.40, 0.50), (0.0, 0.006), (3.6, 5.2), (2.6, 3.8), ("flats", "houses"), (5, 13),
           ("cloudy", "hazy", "clear"), AUTUMN, False),
)  # fmt: skip
VAL = (
    Family("duskmoor", (0.30, 0.38), (0.004, 0.010), (4.6, 6.2), (2.8, 4.4), ("flats", "offices"), (9, 20),
           ("dusk",), GREEN + AUTUMN, True),
    Family("greyhythe", (0.50, 0.57), (0.002, 0.010), (3.0, 4.0), (2.2, 3.2), ("flats", "houses"), (5, 14),
           ("overcast",), AUTUMN + GREEN, False),
    Family("solvento", (0.34, 0.54), (0.003, 0.010), (3.2, 5.6), (2.4, 4.0), ("offices", "houses"), (5, 16),
           ("low sun",), AUTUMN, True),
)  # fmt: skip


def aim_camera(family: Family, street: Street, rng: np.random.Generator) -> Camera:
    """The camera of a car in the right lane of the street."""
    bend = rng.uniform(*family.curve) * rng.choice([-1, 1])
    return Camera(
        width=WIDTH_PX * OVERSAMPLING,
        height=HEIGHT_PX * OVERSAMPLING,
        focal=rng.uniform(0.82, 0.98) * WIDTH_PX * OVERSAMPLING,
        horizon=rng.uniform(*family.horizon) * HEIGHT_PX * OVERSAMPLING,
        eye_m=rng.uniform(1.3, 1.7),
        s_m=street.half_road * rng.uniform(0.2, 0.4),
        curve=float(bend),
    )


# Weather: elevation and strength of the sun, ambient light, sky below and above, clouds, haze in metres,
# share of lamps that are lit, colour cast, noise.
_WEATHER: dict[str, tuple[Range, float, Color, Color, Color, Range, float, float, Color, float]] = {
    "clear": ((0.7, 1.2), 1.05, (0.50, 0.54, 0.62), (0.68, 0.76, 0.84), (0.22, 0.40, 0.68), (0.0, 0.4),
              500, 0.0, (1, 1, 1), 0.012),
    "cloudy": ((0.7, 1.1), 0.45, (0.66, 0.67, 0.70), (0.76, 0.78, 0.80), (0.42, 0.52, 0.66), (0.4, 0.9),
               350, 0.0, (1, 1, 1), 0.014),
    "hazy": ((0.6, 1.0), 0.60, (0.62, 0.60, 0.56), (0.80, 0.78, 0.72), (0.50, 0.58, 0.66), (0.0, 0.5),
             150, 0.0, (1.02, 1, 0.95), 0.014),
    "dusk": ((0.1, 0.2), 0.0, (0.36, 0.35, 0.44), (0.70, 0.46, 0.34), (0.20, 0.24, 0.44), (0.1, 0.7),
             260, 0.45, (1, 1, 1), 0.020),
    "overcast": ((0.8, 1.0), 0.0, (0.66, 0.69, 0.71), (0.68, 0.71, 0.72), (0.46, 0.50, 0.54), (0.7, 1.0),
                 170, 0.05, (0.88, 1.0, 1.06), 0.022),
    "low sun": ((0.25, 0.5), 1.55, (0.34, 0.36, 0.44), (0.84, 0.74, 0.58), (0.28, 0.42, 0.64), (0.0, 0.3),
                300, 0.0, (1.10, 1.0, 0.84), 0.014),
}  # fmt: skip


def draw_light(family: Family, rng: np.random.Generator) -> Light:
    """The light of one of the family's kinds of weather."""
    name = str(rng.choice(family.weather))
    height, sun, ambient, low, high, clouds, haze_m, lamps, tint, noise = _WEATHER[name]
    elevation, azimuth = rng.uniform(*height), rng.uniform(0.15, 0.85) * np.pi
    side = rng.choice([-1.0, 1.0])
    exposure = rng.uniform(1.15, 1.55)
    return Light(
        to_sun=(
            float(side * np.sin(azimuth) * np.cos(elevation)),
            float(np.sin(elevation)),
            float(np.cos(azimuth) * np.cos(elevation)),
        ),
        sun=_scaled((1.0, 0.93, 0.80), sun * exposure),
        ambient=_scaled(ambient, exposure),
        sky_low=_scaled(low, exposure),
        sky_high=_scaled(high, exposure),
        clouds=float(rng.uniform(*clouds)),
        haze_m=haze_m,
        lamps=lamps,
        cast=tint,
        noise=noise,
    )


def _scaled(color: Color, factor: float) -> Color:
    r, g, b = color
    return (r * factor, g * factor, b * factor)


def plan_street(family: Family, rng: np.random.Generator) -> Street:
    """Widths, and buildings on both sides, some with a gap between them."""
    buildings: list[Building] = []
    for side in (-1, 1):
        z, hidden_m = float(rng.uniform(-12, 0)), 0.0
        while z < 95:
            kind = family.kinds[rng.integers(len(family.kinds))]
            length = float(rng.uniform(7, 11) if kind == "houses" else rng.uniform(9, 18))
            height = float(np.clip(rng.uniform(*family.heights), 4.5, 7.0 if kind == "houses" else 30))
            if z + length > 2:
                buildings.append(Building(side, z, z + length, height, _paint(rng), kind, height > hidden_m))
            gap = rng.random() < (0.7 if kind == "houses" else 0.2)
            hidden_m = 0.0 if gap else height
            z += length + (float(rng.uniform(2, 6)) if gap else 0.0)
    return Street(
        half_road=float(rng.uniform(*family.half_road)),
        verge=float(rng.choice([0.0, 0.0, rng.uniform(1.2, 2.2)])),
        sidewalk=float(rng.uniform(*family.sidewalk)),
        crossing_z=float(rng.uniform(7, 30)) if rng.random() < 0.4 else 1e3,
        dashed=bool(rng.random() < 0.7),
        front_garden=float(rng.uniform(2.0, 4.5)) if rng.random() < 0.5 else 0.0,
        buildings=tuple(buildings),
    )


def place_things(family: Family, street: Street, rng: np.random.Generator) -> list[Thing]:
    """Cars, persons, trees, posts and bins, where a street has them."""
    things: list[Thing] = [*_place_cars(street, rng), *_place_persons(street, rng)]
    for side in (-1, 1):
        things += _place_posts(street, side, rng)
        if rng.random() < 0.8:
            things += _place_trees(family, street, side, rng)
        if rng.random() < 0.4:
            s = side * (street.half_road + street.verge + street.sidewalk - 0.4)
            things.append(Bin(s, float(rng.uniform(7, 20)), _paint(rng)))
    return things


def _paint(rng: np.random.Generator) -> Color:
    return PAINTS[rng.integers(len(PAINTS))]


def _place_cars(street: Street, rng: np.random.Generator) -> list[Thing]:
    profiles: tuple[Literal["sedan", "hatch", "van"], ...] = ("sedan", "hatch", "hatch", "van")
    cars: list[Thing] = []

    def add(s: float, z: float, oncoming: bool) -> None:
        cars.append(Car(s, z, _paint(rng), profiles[rng.integers(len(profiles))], oncoming))

    if rng.random() < 0.55:
        add(street.half_road * 0.33, float(rng.uniform(9, 26)), oncoming=False)
    for z in np.cumsum(rng.uniform(10, 30, rng.integers(0, 3))):
        add(-street.half_road * 0.36, float(z), oncoming=True)
    if street.half_road > 4.0:
        for side in (-1, 1):
            z = float(rng.uniform(4.5, 14))
            while z < 60 and rng.random() < 0.8:
                add(side * (street.half_road - 1.05), z, oncoming=side < 0)
                z += float(rng.uniform(5.2, 9.0))
    return cars


def _place_persons(street: Street, rng: np.random.Generator) -> list[Thing]:
    skins: tuple[Color, ...] = ((0.52, 0.32, 0.22), (0.30, 0.17, 0.10), (0.14, 0.08, 0.05))
    walk = street.half_road + street.verge
    persons: list[Thing] = []
    for _ in range(rng.integers(3, 7)):
        z = float(rng.uniform(5.5, 13))
        if rng.random() < 0.22 or abs(street.crossing_z + 1.5 - z) < 4:
            s, z = float(rng.uniform(-0.9, 0.9)) * street.half_road, max(z, 9.0)
        else:
            s = float(rng.choice([-1, 1]) * (walk + rng.uniform(0.3, 0.85) * street.sidewalk))
        for friend in range(1 + (rng.random() < 0.3)):
            persons.append(
                Person(s + 0.62 * friend, z, float(rng.uniform(1.6, 1.95)), float(rng.uniform(0.05, 0.36)),
                       _paint(rng), _paint(rng), skins[rng.integers(len(skins))], int(rng.choice([-1, 1])))
            )  # fmt: skip
    return persons


def _place_posts(street: Street, side: int, rng: np.random.Generator) -> list[Thing]:
    metals: tuple[Color, ...] = (
        (0.30, 0.31, 0.32),
        (0.12, 0.13, 0.13),
        (0.14, 0.19, 0.15),
        (0.42, 0.42, 0.40),
    )
    looks: tuple[tuple[Literal["round", "triangle", "diamond", "board"], Color, Color], ...] = (
        ("round", (0.78, 0.78, 0.75), (0.60, 0.04, 0.04)), ("round", (0.03, 0.14, 0.48), (0.7, 0.7, 0.7)),
        ("triangle", (0.78, 0.78, 0.75), (0.60, 0.04, 0.04)),
        ("diamond", (0.75, 0.50, 0.03), (0.7, 0.7, 0.7)),
        ("board", (0.04, 0.16, 0.46), (0.7, 0.7, 0.7)), ("board", (0.72, 0.52, 0.05), (0.1, 0.1, 0.1)),
    )  # fmt: skip
    metal = metals[rng.integers(len(metals))]
    s = side * (street.half_road + (street.verge or 0.9) * 0.6)
    posts: list[Thing] = []
    first, pitch = float(rng.uniform(6.5, 10)), float(rng.uniform(7, 10))
    for z in (first, first + pitch):
        posts.append(Post(s, z, "lamp", metal, metal, metal))
    for z in first + pitch * np.array([0.45, 1.35])[: rng.integers(0, 3)]:  # never hidden by a lamp post
        kind, face, rim = looks[rng.integers(len(looks))]
        posts.append(Post(s + 0.3 * side, float(z), kind, metal, face, rim))
    return posts


def _place_trees(family: Family, street: Street, side: int, rng: np.random.Generator) -> list[Thing]:
    trees: list[Thing] = []
    in_verge = street.verge > 0 or rng.random() < 0.4
    s = street.half_road + (
        0.7 if in_verge else street.verge + street.sidewalk + 0.5 * street.front_garden + 0.3
    )
    z = float(rng.uniform(6, 16))
    foliage = family.foliage[rng.integers(len(family.foliage))]
    while z < 80:
        radius = float(rng.uniform(1.3, 2.6))
        trees.append(Tree(side * s, z, radius + float(rng.uniform(1.6, 2.8)), radius, foliage))
        z += float(rng.uniform(6, 16))
    if street.front_garden > 0.8 or rng.random() < 0.2:
        hedge = street.half_road + street.verge + street.sidewalk + 0.5
        for near in rng.uniform(4, 30, 6):
            low = float(rng.uniform(0.5, 0.9))
            trees.append(Tree(side * hedge, float(near), low, low, foliage))
    return trees
