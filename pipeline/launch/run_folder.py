"""The folder of a run: who may write to it, and whether what was typed is the run that it holds.

`<runs>/<name>/` has attempts, checkpoints, journal, pictures, trace, log, config.json, result.json and
report.html. One live job holds it at a time, by a lock that dies with its process; a name stands
for one config, so running it again goes on with it or tells what it gave.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from pipeline.config import Config
from pipeline.disk import flush
from pipeline.errors import ConfigError, WorldStateError
from pipeline.settings import config_hash, decides_numbers, flatten, from_dict, to_dict, with_settings
from pipeline.train.hub_backbone import resolve_architecture
from pipeline.train.hub_names import names_folder, recorded_name

HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
"""How flock says that another process has the lock."""
LEASE_TRIES = 5
GIT_COMMIT = "git_commit"
"""Key of result.json beside the RESULT's own: the code that trained, for a model registered later."""
RESERVED = ("mlartifacts", "mlflow.db", "mlflow.db-journal", "shards", "mini-city", "predictions")
"""What lies beside the runs in their folder."""
ARCHITECTURE = "model.backbone.architecture"
SHOWN_CHARS = 100
"""Most that a message has of a value: the text of an architecture is pages long."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def run_name(typed: str | None, config: Config) -> str:
    """The typed name, or one made of the head's kind; raises ConfigError for one no folder can have."""
    if typed is None:
        return f"{config.model.head.kind}-{secrets.token_hex(2)}"
    if not NAME.fullmatch(typed):
        raise ConfigError(
            f"--name {typed!r} must be 1 to 100 letters, digits, dots, dashes or underscores, "
            "beginning with a letter or digit"
        )
    if typed in RESERVED:
        raise ConfigError(f"--name {typed} is the name of something else in the folder of runs; type another")
    return typed


@contextmanager
def lease(run_dir: Path) -> Iterator[None]:
    """Hold the run's folder, made if need be, for as long as the context is open.

    Raises WorldStateError where another live job holds it, or the disk refuses. The lock belongs to the
    open file, so it ends with this process, however that dies.
    """
    with _held_file(run_dir) as file:
        try:
            with _clear_refusal(run_dir / "lease"):
                os.ftruncate(file.fileno(), 0)
                # Unbuffered: what a full disk refused must not be tried again when the file is closed.
                os.write(file.fileno(), f"pid {os.getpid()} on {socket.gethostname()}".encode())
            yield
        finally:
            if not (run_dir / "config.json").exists():  # nothing began: leave no empty run behind
                (run_dir / "lease").unlink(missing_ok=True)
                with suppress(OSError):
                    run_dir.rmdir()


def _held_file(run_dir: Path) -> TextIO:
    """The open and locked lease of the run's folder.

    A holder whose run never began removes lease and folder when it ends. A lock that was won on a
    removed file holds nothing, so the path is looked at again afterwards.
    """
    path = run_dir / "lease"
    for _ in range(LEASE_TRIES):
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except FileNotFoundError:
            continue  # the folder was removed in between
        except OSError as error:
            raise WorldStateError(
                f"cannot write to {run_dir}: {error.strerror}; choose another --runs"
            ) from error
        try:
            _lock(file, run_dir)
            if _is_at(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()
    raise WorldStateError(f"{path} is removed again and again; choose another --name")


def _is_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: TextIO, run_dir: Path) -> None:
    """Raises WorldStateError where the file is locked, or where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in HELD:
            raise WorldStateError(
                f"cannot lock {run_dir / 'lease'}: {error.strerror}; choose --runs on another file system"
            ) from error
        file.seek(0)
        raise WorldStateError(
            f"run {run_dir.name} is held by a live job ({file.read().strip() or 'just started'}); "
            "wait for it, stop it, or choose another --name"
        ) from error


def identity(config: Config, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's name stands for, as config.json has it; `recorded` is, say, the manifest's id."""
    return dict(recorded) | {"config_hash": config_hash(config), "config": to_dict(config)}


def refuse_other_run(run_dir: Path, wanted: Mapping[str, Any]) -> None:
    """Raises WorldStateError, naming what differs, where training began here as something else."""
    path = run_dir / "config.json"
    if not path.exists():
        return
    try:
        differences = _differences(json.loads(path.read_text(encoding="utf-8")), wanted)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise WorldStateError(f"{path} cannot be read ({error}); choose another --name") from error
    if differences:
        raise WorldStateError(
            f"run {run_dir.name} was made with other settings ({'; '.join(differences)}); "
            "type those, or choose another --name"
        )


def finished_result(run_dir: Path, steps: int) -> dict[str, Any] | None:
    """The RESULT of a run that was finished with so many steps, or None; one of fewer is being extended."""
    path = run_dir / "result.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        return dict(result) if result and result["step"] >= steps else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WorldStateError(
            f"{path} cannot be read ({error}); remove it, and the same command finishes the run again"
        ) from error


def recorded_config(path: Path) -> Config:
    """The config of a run's config.json; raises ConfigError where there is none."""
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8"))["config"])
    except FileNotFoundError as error:
        raise ConfigError(f"--config {path}: no such file; a run's is RUNS/NAME/config.json") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ConfigError(f"--config {path} is not a run's config.json ({error})") from error


def with_architecture(config: Config, run_dir: Path) -> Config:
    """The config with the backbone's architecture as text, as it is recorded; looked up once a run.

    A run that has recorded the text of that name takes it from there, so that it goes on without the hub
    and whatever the hub has by then. Raises ConfigError where there is no such architecture.
    """
    name = config.model.backbone.architecture
    if name and not names_folder(name) and (run_dir / "config.json").exists():
        with suppress(ConfigError):  # told by refuse_other_run
            recorded = recorded_config(run_dir / "config.json").model.backbone.architecture
            if recorded_name(recorded) == name:
                return with_settings(config, {ARCHITECTURE: recorded})
    return with_settings(config, {ARCHITECTURE: resolve_architecture(config.model.backbone).architecture})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that readers see whole or not at all; raises WorldStateError where the disk refuses."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with _clear_refusal(path):
        try:
            part.write_text(json.dumps(content, indent=1), encoding="utf-8")
            flush(part)
            part.replace(path)
            flush(path.parent)
        except OSError:
            part.unlink(missing_ok=True)
            raise


@contextmanager
def _clear_refusal(path: Path) -> Iterator[None]:
    """Raises WorldStateError, naming the file, for a disk that refuses it."""
    try:
        yield
    except OSError as error:
        raise WorldStateError(
            f"cannot write {path}: {error.strerror or error}; make room or take another --runs, then type "
            "the same again"
        ) from error


def _differences(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """`name: held, not wanted` for each decisive value; what only says how to launch may change."""
    if held["config_hash"] == wanted["config_hash"]:
        pairs: dict[str, tuple[Any, Any]] = {}
    else:
        before, now = flatten(from_dict(held["config"])), flatten(from_dict(wanted["config"]))
        pairs = {f"--{name}": (before[name], now[name]) for name in now if decides_numbers(name)}
    for name in held.keys() - {"config", "config_hash"}:
        pairs[name] = (held[name], wanted.get(name))
    return [
        f"{name} {_short(before)}, now {_short(now)}"
        for name, (before, now) in pairs.items()
        if before != now
    ]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…"
