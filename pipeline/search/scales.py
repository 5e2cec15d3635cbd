"""Where a value of a setting lies on an axis, for whatever draws or compares settings.

An axis has a place for each value that can be chosen, and beside these its range, even in the logarithm
where the setting is searched so: `0, or 0.001 to 3` is a place for 0 and then three decades and a half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.search.records import Dimension, Value

CHOICE_SHARE = 0.14
"""Of the axis, for each value that can be chosen beside a range."""
NEAR = 0.13
"""Ticks that are closer than this share of the axis to another would overprint it."""


@dataclass(frozen=True)
class Scale:
    """The axis of one setting, from 0 to 1."""

    dimension: Dimension

    @property
    def range_begin(self) -> float:
        """Where the range begins; 1 without one."""
        return len(self.dimension.values) * CHOICE_SHARE if self.dimension.has_range else 1.0

    def choice(self, value: Value) -> int | None:
        """Which of the values that can be chosen it is; None for one of the range, or of neither."""
        same = [
            n for n, v in enumerate(self.dimension.values) if v == value and _is_bool(v) == _is_bool(value)
        ]
        return same[0] if same else None

    def share_of_range(self, value: Value) -> float | None:
        """How far along the range it is, from 0 to 1; None where it is not of the range.

        A number beyond the range, such as a default that the space leaves out, is held at its end.
        """
        low, high = self.dimension.low, self.dimension.high
        if low is None or high is None or isinstance(value, str | bool) or self.choice(value) is not None:
            return None
        number = float(value)
        if self.dimension.log:
            if number <= 0.0:
                return 0.0
            low, high, number = math.log(low), math.log(high), math.log(number)
        return min(max((number - low) / (high - low), 0.0), 1.0) if high > low else 0.5

    def place(self, value: Value) -> float | None:
        """Its place from 0 to 1; None for a value that the space does not have."""
        choice = self.choice(value)
        if choice is not None:
            return self._choice_place(choice)
        share = self.share_of_range(value)
        return None if share is None else self.range_begin + share * (1.0 - self.range_begin)

    def ticks(self) -> list[tuple[float, str]]:
        """Places and labels: each value that can be chosen, both ends of the range, and what fits between."""
        ticks = [(self._choice_place(n), value_text(value)) for n, value in enumerate(self.dimension.values)]
        if self.dimension.low is None or self.dimension.high is None:
            return ticks
        ends = [self.dimension.low, self.dimension.high]
        placed = [(self._range_place(end), value_text(end)) for end in ends]
        for inner in _inner_ticks(ends[0], ends[1], log=self.dimension.log):
            place = self._range_place(inner)
            if all(abs(place - other) >= NEAR for other, _ in placed):
                placed.append((place, value_text(inner)))
        return ticks + sorted(placed)

    def _range_place(self, number: float) -> float:
        share = self.share_of_range(number) or 0.0
        return self.range_begin + share * (1.0 - self.range_begin)

    def _choice_place(self, number: int) -> float:
        if self.dimension.has_range:
            return (number + 0.35) * CHOICE_SHARE
        return (number + 0.5) / len(self.dimension.values)


def value_text(value: Value) -> str:
    """A value as a person reads it, in few characters: `0.002`, `2e-05`, `gate`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) and abs(value) < 1e6 else f"{value:.3g}"


def typed_text(value: Value) -> str:
    """A value as the command line takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def short_names(names: Sequence[str]) -> Mapping[str, str]:
    """Dotted name → the shortest end of it that is no other's: `model.head.tau` → `tau`."""
    shorts = {}
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
        others = [other for other in names if other != name]
        shorts[name] = next(
            (end for end in ends if not any(f".{o}".endswith(f".{end}") for o in others)), name
        )
    return shorts


def _inner_ticks(low: float, high: float, *, log: bool) -> list[float]:
    """Round numbers inside the range, those that are shown first at the head."""
    if not log:
        return [low + (high - low) / 2, low + (high - low) / 4, low + (high - low) * 3 / 4]
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [
        number
        for factor in (1, 3, 2, 5)
        for exponent in exponents
        if low < (number := factor * 10.0**exponent) < high
    ]


def _is_bool(value: Value) -> bool:
    return isinstance(value, bool)
