"""Typed paths made absolute, or refused where a relative one would point into a temporary folder."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.data.store.address import is_address
from pipeline.errors import ConfigError


def inside_ray_job() -> bool:
    """True in the driver of a `ray job submit`, whose working directory is a temporary copy."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def resolve_path(flag: str, text: str) -> str:
    """The absolute form of a path typed with `flag`; addresses (`x://…`) are left as they are.

    Raises ConfigError for an empty path, and for a relative one inside a Ray job, where it would
    vanish with the working directory; the message has the form to type.
    """
    if not text.strip():
        raise ConfigError(f"{flag} is empty; type a folder")
    if is_address(text):
        return text
    path = Path(text).expanduser()
    if not path.is_absolute() and inside_ray_job():
        raise ConfigError(
            f"{flag} {text} is relative, and a Ray job runs in a temporary copy of the working directory; "
            f'type {flag} "$(pwd)/{text}"'
        )
    return str(Path(os.path.abspath(path)))  # noqa: PTH100 - resolve() would follow a link given on purpose
