"""Which settings of a trial count: those that the others leave idle are not given to it.

So `delta` belongs to a trial only with the hinge form and a `lambda_inter` above 0. What makes a setting
idle is said once, in `pipeline/idle_settings.py`, which refuses the same settings when they are typed.
"""

from __future__ import annotations

from pipeline.config import Config
from pipeline.idle_settings import idle_among
from pipeline.search.records import Settings, Value
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


def trial_name(settings: Settings, defaults: Settings, seed_of_repeat: int | None = None) -> str:
    """What varies, in words: `tau 12.1 · fusion gate`; `defaults` where nothing does."""
    varied = [
        f"{leaf(n)} {value_text(v)}" for n, v in settings.items() if n not in defaults or v != defaults[n]
    ]
    name = " · ".join(varied) or "defaults"
    return name if seed_of_repeat is None else f"{name} · seed {seed_of_repeat}"


def leaf(name: str) -> str:
    """The last part of a dotted name."""
    return name.rpartition(".")[2]
