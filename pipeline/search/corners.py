"""A space is checked where it is widest before a trial starts: at the ends of its ranges and all its values.

Settings refuse each other in pairs (a least learning rate above the learning rate), so all pairs of corners
are tried, by making the config. Whatever costs more, such as making the model, is tried a corner at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations, product

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.search.records import Dimension, Value
from pipeline.settings import with_settings


def check_corners(config: Config, space: tuple[Dimension, ...], check: Callable[[Config], None]) -> None:
    """Raises ConfigError, naming the corner, where the config, or `check` of it, refuses one."""
    for dimension in space:
        for value in corners(dimension):
            corner = {dimension.name: value}
            made = _made(config, corner)
            _tried(partial(check, made), corner)
    for first, second in combinations(space, 2):
        for value, other in product(corners(first), corners(second)):
            _made(config, {first.name: value, second.name: other})


def corners(dimension: Dimension) -> Iterator[Value]:
    """All values that can be chosen, and both ends of the range.

    Of whole numbers the second one too: a setting that takes few of them, such as multiples of 8, refuses it.
    """
    yield from dimension.values
    if dimension.low is None or dimension.high is None:
        return
    if dimension.whole:
        low, high = int(dimension.low), int(dimension.high)
        yield from dict.fromkeys((low, low + 1, high))
    else:
        yield from (dimension.low, dimension.high)


def _made(config: Config, corner: dict[str, Value]) -> Config:
    made: list[Config] = []
    _tried(lambda: made.append(with_settings(config, corner)), corner)
    return made[0]


def _tried(attempt: Callable[[], None], corner: dict[str, Value]) -> None:
    try:
        attempt()
    except ConfigError as error:
        where = ", ".join(f"{name} {value}" for name, value in corner.items())
        names = " or ".join(f"--search.{name}" for name in corner)
        raise ConfigError(f"a corner of the space is refused ({where}): {error}; narrow {names}") from error
