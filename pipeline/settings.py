"""Settings by dotted name: how the command line, Ray Tune and recorded runs change a config.

All three go through `with_settings`, so a name means the same thing everywhere and a misspelt one
is refused with the nearest known name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal

from pipeline.config import WITHOUT_NUMBERS, Config, require
from pipeline.errors import ConfigError, nearest


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain values, ready for JSON."""
    return dataclasses.asdict(config)


def flatten(config: Config) -> dict[str, Any]:
    """Dotted name → value, in the order of the fields."""

    def walk(node: object, prefix: str) -> dict[str, Any]:
        flat: dict[str, Any] = {}
        for f in dataclasses.fields(node):  # type: ignore[arg-type]  # a dataclass by construction
            value = getattr(node, f.name)
            if dataclasses.is_dataclass(value):
                flat |= walk(value, f"{prefix}{f.name}.")
            else:
                flat[f"{prefix}{f.name}"] = value
        return flat

    return walk(config, "")


def config_hash(config: Config) -> str:
    """sha256 (64 hex digits) of the values that decide numbers: all but config.WITHOUT_NUMBERS."""
    decisive = {name: value for name, value in flatten(config).items() if decides_numbers(name)}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def decides_numbers(name: str) -> bool:
    """True for a dotted name whose value a resumed run may not change."""
    return not name.startswith(WITHOUT_NUMBERS)


def from_dict(values: Mapping[str, Any]) -> Config:
    """The config that `to_dict` wrote; unknown or missing names raise ConfigError."""

    def flat(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.items():
            name = f"{prefix}{key}"
            found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
        return found

    settings = flat(values, "")
    missing = [name for name in flatten(Config()) if name not in settings]
    require(not missing, f"the recorded config lacks {', '.join(missing)}")
    return with_settings(Config(), settings)


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """`config` with fields set by dotted name; text is converted to the field's type.

    Raises ConfigError for an unknown name (with the nearest one), a value of the wrong type, or a
    combination that a section refuses.
    """
    known = flatten(config)
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in known:  # not `require`: to look for the nearest name takes a millisecond
            raise ConfigError(f"unknown setting --{name}{nearest(name, known)}")
        node = tree
        *sections, leaf = name.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    replaced: Config = _replace(config, tree, "")
    return replaced


def _replace(node: Any, tree: Mapping[str, Any], prefix: str) -> Any:  # noqa: ANN401 - any section
    hints = typing.get_type_hints(type(node))
    changes: dict[str, Any] = {}
    for name, value in tree.items():
        current = getattr(node, name)
        if dataclasses.is_dataclass(current):
            changes[name] = _replace(current, value, f"{prefix}{name}.")
        else:
            changes[name] = _convert(value, hints[name], f"{prefix}{name}")
    return dataclasses.replace(node, **changes)


def _convert(value: Any, kind: Any, name: str) -> Any:  # noqa: ANN401 - any field's type
    """`value` as the field's type: bool, int, float, str or one of a Literal's values."""
    if typing.get_origin(kind) is Literal:
        for choice in typing.get_args(kind):
            if str(choice) == str(value):
                return choice
        choices = [str(c) for c in typing.get_args(kind)]
        raise ConfigError(f"--{name} takes {', '.join(choices)}; got {value!r}{nearest(str(value), choices)}")
    if kind is bool:
        words = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
        require(str(value).lower() in words, f"--{name} takes true or false, got {value!r}")
        return words[str(value).lower()]
    assert isinstance(kind, type), (name, kind)
    try:
        if kind is int and isinstance(value, float) and not value.is_integer():
            raise ValueError
        converted = kind(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--{name} takes {kind.__name__}, got {value!r}") from error
    require(kind is not float or math.isfinite(converted), f"--{name} takes a finite number, got {value!r}")
    return converted
