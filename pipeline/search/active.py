"""Which settings of a trial count: those that the others leave idle are not given to it.

So `delta` belongs to a trial only with the hinge form and a `lambda_inter` above 0. What makes a setting
idle is said once, in `pipeline/idle_settings.py`, which refuses the same settings when they are typed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.idle_settings import idle_among, silencing
from pipeline.search.corners import corners
from pipeline.search.records import Dimension, Settings, Value
from pipeline.search.scales import value_text
from pipeline.settings import with_settings


def active_settings(config: Config, settings: Settings) -> dict[str, Value]:
    """The settings without those that the config with all the others would ignore.

    Raises ConfigError where they refuse each other.
    """
    active = dict(settings)
    while idle := idle_among(with_settings(config, active), active):
        active = {name: value for name, value in active.items() if name not in idle}
    return active


def why_never_read(config: Config, name: str, space: Sequence[Dimension]) -> str | None:
    """Why no settings of the space make a config that reads that one, and what to take; None where some do.

    Each step sets one that silences it less, until nothing does: what silences a setting is said of one or
    two others.
    """
    made = config
    while rules := silencing(made, name):
        freer = _less_silenced(made, name, space, len(rules))
        if freer is None:
            return f"{rules[0].reason.format(config=made)}; {rules[0].remedy}"
        made = freer
    return None


def _less_silenced(config: Config, name: str, space: Sequence[Dimension], rules: int) -> Config | None:
    for dimension in space:
        for value in corners(dimension):
            with suppress(ConfigError):
                made = with_settings(config, {dimension.name: value})
                if len(silencing(made, name)) < rules:
                    return made
    return None


def trial_name(settings: Settings, defaults: Settings, seed_of_repeat: int | None = None) -> str:
    """What varies, in words: `tau 12.1 · fusion gate`; `defaults` where nothing does.

    The seed of a repeat comes first: names are cut at their end, where two trainings would be alike.
    """
    varied = [
        f"{leaf(n)} {value_text(v)}" for n, v in settings.items() if n not in defaults or v != defaults[n]
    ]
    name = " · ".join(varied) or "defaults"
    return name if seed_of_repeat is None else f"seed {seed_of_repeat} · {name}"


def leaf(name: str) -> str:
    """The last part of a dotted name."""
    return name.rpartition(".")[2]
