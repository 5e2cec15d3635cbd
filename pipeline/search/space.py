"""The space of a search as people write it: `log:5:40`, `hinge,softmax`, `0 | log:0.001:3`.

A dimension is a setting of the config by its dotted name, so values have the type of its field and a
misspelt name is refused with the nearest one. A space is a preset, a YAML file or both, changed by
`--search.NAME SPEC`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Config, require
from pipeline.errors import ConfigError, nearest
from pipeline.search.presets import PRESETS, preset
from pipeline.search.records import Dimension, Value
from pipeline.settings import flatten, with_settings

PRESET_KEY = "preset"
"""Key of a space's file that names what it changes."""
OFF = "off"
"""Spec that takes a setting out of the space."""
GRAMMAR = "values a,b,c, a range LOW:HIGH or log:LOW:HIGH, both joined by |, or off"


def read_space(
    config: Config, named: str, changes: Mapping[str, str], num_classes: int
) -> tuple[Dimension, ...]:
    """The space of a preset's name or a YAML file, with the changes that were typed on top.

    Raises ConfigError for what cannot be read, and for a space in which nothing is searched.
    """
    specs = dict(_named(config, named, num_classes))
    for name, spec in changes.items():
        specs[name] = spec
    space = tuple(
        dimension if isinstance(dimension, Dimension) else read_dimension(config, name, dimension)
        for name, dimension in specs.items()
        if dimension != OFF
    )
    require(bool(space), f"--space {named}: nothing is left to search; type --search.NAME SPEC")
    return space


def read_dimension(config: Config, name: str, spec: str) -> Dimension:
    """The dimension that a spec stands for; raises ConfigError, with the grammar, for anything else."""
    known = flatten(config)
    require(name in known, f"--search.{name}: unknown setting{nearest(name, known)}")
    values: list[Value] = []
    ranges: list[tuple[float, float, bool]] = []
    for part in (text.strip() for text in spec.split("|")):
        if ":" in part:
            ranges.append(_read_range(name, spec, part))
        else:
            values += [read_value(config, name, text.strip()) for text in part.split(",")]
    _refuse_repeated(name, spec, values)
    if not ranges:
        require(len(values) >= 2, f"--search.{name} {spec}: one value is no choice; type {GRAMMAR}")
        return Dimension(name, tuple(values))
    require(len(ranges) == 1, f"--search.{name} {spec}: at most one range; type {GRAMMAR}")
    low, high, log = ranges[0]
    default = known[name]
    require(
        isinstance(default, int | float) and not isinstance(default, bool),
        f"--search.{name} {spec}: {name} is no number; type {GRAMMAR}",
    )
    whole = isinstance(default, int)
    require(
        not whole or (low.is_integer() and high.is_integer()),
        f"--search.{name} {spec}: {name} takes whole numbers",
    )
    return Dimension(name, tuple(values), low, high, log, whole)


def read_value(config: Config, name: str, text: object) -> Value:
    """A value of a setting as its field has it; raises ConfigError for one that it cannot take."""
    value: Value = flatten(with_settings(config, {name: text}))[name]
    return value


def spec_of(dimension: Dimension) -> str:
    """The spec that `read_dimension` reads as this dimension."""
    parts = [",".join(str(value) for value in dimension.values)] if dimension.values else []
    if dimension.low is not None:
        parts.append(f"{'log:' if dimension.log else ''}{dimension.low:g}:{dimension.high:g}")
    return "|".join(parts)


def defaults_of(config: Config, space: tuple[Dimension, ...]) -> dict[str, Value]:
    """Name → what the config has, for all settings of the space."""
    known = flatten(config)
    return {dimension.name: known[dimension.name] for dimension in space}


def _named(config: Config, named: str, num_classes: int) -> Mapping[str, str | Dimension]:
    if named in PRESETS:
        return _of_preset(config, named, num_classes)
    content = _read_file(Path(named))
    base = content.pop(PRESET_KEY, None)
    require(base is None or base in PRESETS, f"{named}: {PRESET_KEY} {base}{_known_presets(str(base))}")
    found = _of_preset(config, str(base), num_classes) if base else {}
    return found | {
        name: ",".join(spec) if isinstance(spec, list) else spec for name, spec in content.items()
    }


def _of_preset(config: Config, name: str, num_classes: int) -> dict[str, str | Dimension]:
    specs = preset(name, config, num_classes)
    return {setting: read_dimension(config, setting, spec) for setting, spec in specs.items()}


def _read_file(path: Path) -> dict[str, Any]:
    """Name → spec, or a list of values; every scalar as text, as YAML reads 5:40 as a time of day."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506 - text alone
    except FileNotFoundError as error:
        raise ConfigError(
            f"--space {path}: no such file, and no preset{_known_presets(path.name)}"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--space {path} cannot be read ({' '.join(str(error).split())})") from error
    is_map = isinstance(content, dict) and all(
        isinstance(spec, str) or (isinstance(spec, list) and all(isinstance(text, str) for text in spec))
        for spec in content.values()
    )
    require(is_map, f"--space {path} must map names of settings to {GRAMMAR}")
    return dict(content)


def _known_presets(name: str) -> str:
    return f"{nearest(name, PRESETS)}; presets are {', '.join(PRESETS)}"


def _read_range(name: str, spec: str, part: str) -> tuple[float, float, bool]:
    """(low, high, log) of `log:LOW:HIGH` or `LOW:HIGH`."""
    words = part.split(":")
    log = words[0] == "log"
    ends = words[1:] if log else words
    try:
        low, high = map(float, ends)
    except ValueError as error:
        raise ConfigError(f"--search.{name} {spec}: cannot read {part}; type {GRAMMAR}") from error
    require(
        math.isfinite(low) and math.isfinite(high) and low < high and (low > 0 or not log),
        f"--search.{name} {spec}: a range has a lower end below its upper one, above 0 where it is log",
    )
    return low, high, log


def _refuse_repeated(name: str, spec: str, values: list[Value]) -> None:
    require(len(set(values)) == len(values), f"--search.{name} {spec}: a value is there twice")
