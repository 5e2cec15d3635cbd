"""The space of a search as people write it: `log:5:40`, `hinge,softmax`, `0 | log:0.001:3`.

A dimension is a setting of the config by its dotted name, so values have the type of its field and a
misspelt name is refused with the nearest one. A space is a preset, a YAML file or both, changed by
`--search.NAME SPEC`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config, require
from pipeline.errors import ConfigError, nearest
from pipeline.search.active import why_never_read
from pipeline.search.presets import PRESETS, preset
from pipeline.search.records import Dimension, Value
from pipeline.search.typed_yaml import read_typed_yaml
from pipeline.settings import decides_numbers, flatten, with_settings

PRESET_KEY = "preset"
"""Key of a space's file that names what it changes."""
OFF = "off"
"""Spec that takes a setting out of the space."""
GRAMMAR = "values a,b,c, a range LOW:HIGH or log:LOW:HIGH, both joined by |, or off"


def read_space(
    config: Config, named: str, changes: Mapping[str, str], num_classes: int
) -> tuple[Dimension, ...]:
    """The space of a preset's name or a YAML file, with the changes that were typed on top.

    A setting of a preset that no trial would read is left out. Raises ConfigError for one that was typed,
    for what cannot be read, and for a space in which nothing is searched.
    """
    base, own = _named(named)
    specs = preset(base, config, num_classes) if base else {}
    found = {name: read_dimension(config, name, spec) for name, spec in specs.items()}
    found = _changed(config, found, own, f"--space {named}: ")
    found = _changed(config, found, changes, "")
    space = tuple(found.values())
    for name in tuple(found):
        why = why_never_read(config, name, space)
        if why is None:
            continue
        where = "" if name in changes else f"--space {named}: "
        typed = changes.get(name, own.get(name))
        require(
            typed is None,
            f"{where}--search.{name} {typed}: no trial would read it, as {why}, or leave --search.{name} out",
        )
        del found[name]
    require(bool(found), f"--space {named}: nothing is left to search; type --search.NAME SPEC")
    return tuple(found.values())


def read_dimension(config: Config, name: str, spec: str) -> Dimension:
    """The dimension that a spec stands for; raises ConfigError, with the grammar, for anything else."""
    known = flatten(config)
    require(name in known, f"--search.{name}: unknown setting{nearest(name, known)}")
    require(
        decides_numbers(name),
        f"--search.{name}: it changes no number of a training, so there is nothing to find; leave it out",
    )
    values: list[Value] = []
    ranges: list[tuple[float, float, bool]] = []
    for part in (text.strip() for text in spec.split("|")):
        if ":" in part:
            ranges.append(_read_range(name, spec, part))
        else:
            values += [_read_choice(config, name, spec, text.strip()) for text in part.split(",")]
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


def defaults_of(config: Config, space: Sequence[Dimension]) -> dict[str, Value]:
    """Name → what the config has, for all settings of the space."""
    known = flatten(config)
    return {dimension.name: known[dimension.name] for dimension in space}


def _named(named: str) -> tuple[str, Mapping[str, str]]:
    """The preset that is meant, "" without one, and the specs of the file on top of it."""
    if named in PRESETS:
        return named, {}
    content = _read_file(Path(named))
    base = content.pop(PRESET_KEY, None)
    require(
        base is None or (isinstance(base, str) and base in PRESETS),
        f"--space {named}: {PRESET_KEY} {base}{_known_presets(str(base))}",
    )
    return base or "", {
        name: ",".join(spec) if isinstance(spec, list) else spec for name, spec in content.items()
    }


def _changed(
    config: Config, space: Mapping[str, Dimension], changes: Mapping[str, str], where: str
) -> dict[str, Dimension]:
    """The space with specs on top; `where` begins what is said of one that cannot be."""
    found = dict(space)
    for name, spec in changes.items():
        if spec.strip() == OFF:
            lacks = f"--search.{name} off: the space has no such setting{nearest(name, space)}; leave it out"
            require(name in found, where + lacks)
            del found[name]
            continue
        try:
            found[name] = read_dimension(config, name, spec)
        except ConfigError as error:
            raise ConfigError(f"{where}{error}") from error
    return found


def _read_file(path: Path) -> dict[str, Any]:
    """Name → spec, or a list of values."""
    try:
        content = read_typed_yaml("--space", path)
    except FileNotFoundError as error:
        raise ConfigError(
            f"--space {path}: no such file, and no preset{_known_presets(path.name)}"
        ) from error
    is_map = isinstance(content, dict) and all(
        isinstance(spec, str) or (isinstance(spec, list) and all(isinstance(text, str) for text in spec))
        for spec in content.values()
    )
    require(is_map, f"--space {path} must map names of settings to {GRAMMAR}")
    return dict(content)


def _known_presets(name: str) -> str:
    return f"{nearest(name, PRESETS)}; presets are {', '.join(PRESETS)}"


def _read_choice(config: Config, name: str, spec: str, text: str) -> Value:
    try:
        return read_value(config, name, text)
    except ConfigError as error:
        raise ConfigError(f"--search.{name} {spec}: {error}; type {GRAMMAR}") from error


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
