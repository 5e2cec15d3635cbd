"""Settings that somebody knows to be of interest: `--points FILE`, tried after the defaults.

A point has what its file says and the defaults of all else in the space, so it says of each setting what it
is; only what idles is not there, as in every trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config import Config, require
from pipeline.errors import ConfigError, nearest
from pipeline.idle_settings import refuse_idle_settings
from pipeline.search.active import active_settings
from pipeline.search.records import Dimension, Settings
from pipeline.search.space import defaults_of
from pipeline.search.typed_yaml import read_typed_yaml
from pipeline.settings import flatten, with_settings


def read_points(config: Config, path: Path, space: Sequence[Dimension]) -> tuple[Settings, ...]:
    """The points of a file, with the types of their fields.

    Raises ConfigError for a setting that is not searched, that the config refuses or ignores, and for
    settings that are tried anyway.
    """
    defaults = defaults_of(config, space)
    found: list[Settings] = [active_settings(config, defaults)]
    for number, typed in enumerate(_read_file(path), start=1):
        where = f"--points {path}, settings {number}"
        try:
            point = _point(config, typed, defaults)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        if point in found:
            same = found.index(point)
            those = f"those of number {same}" if same else "the defaults, which are tried anyway"
            raise ConfigError(f"{where} are {those}; leave them out")
        found.append(point)
    return tuple(found[1:])


def _point(config: Config, typed: Mapping[str, str], defaults: Settings) -> Settings:
    for name in typed:
        near = nearest(name, defaults)
        require(
            name in defaults,
            f"{name} is not searched{near}; type --search.{name} SPEC too, or leave it out",
        )
    made = with_settings(config, typed)
    refuse_idle_settings(made, typed)
    known = flatten(made)
    return active_settings(config, {name: known[name] for name in defaults})


def _read_file(path: Path) -> list[Mapping[str, str]]:
    try:
        content = read_typed_yaml("--points", path)
    except FileNotFoundError as error:
        raise ConfigError(f"--points {path}: no such file") from error
    is_list = isinstance(content, list) and all(
        isinstance(point, dict) and all(isinstance(value, str) for value in point.values())
        for point in content
    )
    require(is_list, f"--points {path} must be a list of mappings, each from names of settings to values")
    return list(content)
