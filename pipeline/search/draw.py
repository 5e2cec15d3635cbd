"""Settings from places in the unit cube: what random and quasi-random search propose.

Proposal n is a function of the space, the seed and n alone, so a search that is started again proposes what
it would have proposed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import qmc

from pipeline.search.records import Dimension, Value

RANGE_WEIGHT = 3
"""How often a range is drawn from, against each value beside it: 0 in one of four for `0|log:0.001:3`."""


def draw_random(space: Sequence[Dimension], seed: int, number: int, attempt: int) -> dict[str, Value]:
    """A value for every dimension, each drawn by itself."""
    place = np.random.default_rng([seed, number, attempt]).random(len(space))
    return at(space, place.tolist())


def draw_sobol(space: Sequence[Dimension], seed: int, number: int, attempt: int) -> dict[str, Value]:
    """The place of that number in a scrambled Sobol sequence, which leaves no large part of a space empty.

    Another attempt takes a sequence scrambled otherwise.
    """
    sequence = qmc.Sobol(len(space), scramble=True, rng=np.random.default_rng([seed, attempt]))
    if number:
        sequence.fast_forward(number)
    return at(space, sequence.random(1)[0].tolist())


def at(space: Sequence[Dimension], place: Sequence[float]) -> dict[str, Value]:
    """The settings at a place, a number in [0, 1) for each dimension."""
    return {d.name: value_at(d, share) for d, share in zip(space, place, strict=True)}


def value_at(dimension: Dimension, share: float) -> Value:
    """The value at a share of the dimension: first those to choose from, then the range."""
    weight = RANGE_WEIGHT if dimension.has_range else 0
    parts = len(dimension.values) + weight
    index = int(share * parts)
    if index < len(dimension.values):
        return dimension.values[index]
    assert dimension.low is not None
    assert dimension.high is not None
    rest = (share * parts - len(dimension.values)) / weight
    low, high = dimension.low, dimension.high
    if dimension.whole:
        low, high = low - 0.5, high + 0.5  # each whole number has as much room
    if dimension.log:
        low, high = math.log(low), math.log(high)  # low is 1 or more where it is whole
    found = low + rest * (high - low)
    found = math.exp(found) if dimension.log else found
    found = min(max(found, dimension.low), dimension.high)
    return round(found) if dimension.whole else found
