"""Typed paths made absolute, or refused where a relative one would point into a temporary folder."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from pathlib import Path

from pipeline.config import Config
from pipeline.data.store.address import is_address
from pipeline.data.store.cache import private_folder
from pipeline.errors import ConfigError
from pipeline.settings import flatten, with_settings
from pipeline.train.hub_names import is_text, names_folder

_NODE_FOLDERS = ("data.decoded_cache", "data.store.cache_dir")
"""Settings that name a folder of each node, or nothing."""
_PATTERN = "data.unindexed_train"
_WEIGHTS, _ARCHITECTURE = "model.backbone.weights", "model.backbone.architecture"
_OUT_OF_REACH = (errno.EACCES, errno.ENAMETOOLONG)
"""What no look at a path gets past: it is told here, once, for whatever the path was typed for."""


def inside_ray_job() -> bool:
    """True in the driver of a `ray job submit`, whose working directory is a temporary copy."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def resolve_path(flag: str, text: str) -> str:
    """The absolute form of a path typed with `flag`; addresses (`x://…`) are left as they are.

    Raises ConfigError for an empty path, for one that this user may not look at, and for a relative one
    inside a Ray job, where it would vanish with the working directory; the message has the form to type.
    """
    if not text.strip():
        raise ConfigError(f"{flag} is empty; type a folder")
    if is_address(text):
        return text
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:  # ~ of a user who is not there
        raise ConfigError(f"{flag} {text}: there is no such user; type the whole path") from error
    if not path.is_absolute() and inside_ray_job():
        raise ConfigError(
            f"{flag} {text} is relative, and a Ray job runs in a temporary copy of the working directory; "
            f'type {flag} "$(pwd)/{text}"'
        )
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link given on purpose
    try:
        path.stat()
    except OSError as error:
        if error.errno in _OUT_OF_REACH:
            raise ConfigError(f"{flag} {path}: {error.strerror}; type another") from error
    return str(path)


def resolve_runs(text: str, config: Config) -> tuple[str, Path]:
    """The address of --runs, "" where it is a folder, and the folder in which runs are worked on.

    Raises as `resolve_path` does, and WorldStateError where this machine keeps no working copies.
    """
    runs = resolve_path("--runs", text)
    if not is_address(runs):
        return "", Path(runs)
    return runs.rstrip("/"), copies_folder(runs.rstrip("/"), config.data.store.cache_dir)


def copies_folder(runs: str, cache_dir: str) -> Path:
    """Where this machine keeps its working copies of the runs at that address."""
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", runs.partition("://")[2]).strip("-")[:60]
    digest = hashlib.sha256(runs.encode()).hexdigest()[:12]
    return private_folder(cache_dir) / "runs" / f"{readable}-{digest}"


def resolve_node_folder(flag: str, text: str) -> str:
    """As `resolve_path`, of a folder in which a node keeps files, which is at no address; "" stays ""."""
    if is_address(text):
        raise ConfigError(f"{flag} {text}: files are kept in a folder of the node; type one, not an address")
    return text and resolve_path(flag, text)


def resolve_settings(config: Config) -> Config:
    """The config with the paths of its settings made absolute; the braces of a pattern stay.

    Raises ConfigError as `resolve_path` does, and for an address where a node keeps files.
    """
    known = flatten(config)
    resolved = {name: resolve_node_folder(f"--{name}", str(known[name])) for name in _NODE_FOLDERS}
    pattern = str(known[_PATTERN])
    if pattern:
        resolved[_PATTERN] = resolve_path(f"--{_PATTERN}", pattern)
        if pattern.endswith("/") and not is_address(pattern):
            resolved[_PATTERN] += "/"  # names no shards, which is told later
    return with_settings(config, resolved | _resolve_backbone(config))


def _resolve_backbone(config: Config) -> dict[str, str]:
    """The backbone's folders and files; what names something of the Hugging Face hub stays as it is."""
    settings = config.model.backbone
    architecture, weights = settings.architecture, settings.weights
    typed = {}
    if architecture and not is_text(architecture) and names_folder(architecture):
        typed[_ARCHITECTURE] = architecture
    if weights and (not architecture or names_folder(weights)):
        typed[_WEIGHTS] = weights
    return {name: resolve_path(f"--{name}", text) for name, text in typed.items()}
