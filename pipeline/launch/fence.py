"""The fence of a run: each attempt has a number, and only the one with the newest may write what counts.

A lease keeps a second job out while the first one lives. It cannot help against a rank that was believed
dead: one that hung, was given up and replaced, and wakes up in the middle of a checkpoint. So each
attempt takes the next number, durably, before its first rank starts, and has it in its name, which is in
all of its paths. Whoever finds a newer number stops. Numbers are handed out by making a file that must
not be there yet; no clock is read.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
from contextlib import suppress
from pathlib import Path

from pipeline.disk import flush
from pipeline.errors import WorldStateError

FOLDER = "attempts"
_ATTEMPT = re.compile(r"(\d{4,})-[0-9a-f]+")


class SupersededError(WorldStateError):
    """A later attempt of the run has begun: nothing that this one does counts any more."""

    def __init__(self, said: str, newest: int = 0) -> None:
        """`newest` is the number of that attempt, 0 where it is not known."""
        super().__init__(said)
        self.newest = newest


def begin_attempt(run_dir: Path, job: str = "", least: int = 1) -> str:
    """The name of a new attempt, such as `0007-3f9c1a`; all earlier ones are refused from now on.

    Its number is the next one, and at least `least`. Its end, hex digits, tells the attempts of one job
    from those of others; made up without it.
    Raises WorldStateError where the disk refuses.
    """
    folder = run_dir / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        token = max(newest_token(run_dir) + 1, least)
        while not _take(folder / f"{token:04d}"):
            token += 1
        for path in (folder, run_dir, run_dir.parent):  # made by this attempt, or by the lease before it
            flush(path)
    except OSError as error:
        raise WorldStateError(
            f"no attempt begins in {folder}: {error.strerror or error}; make room or take another --runs"
        ) from error
    return f"{token:04d}-{job or secrets.token_hex(3)}"


def newest_token(run_dir: Path) -> int:
    """The number of the newest attempt of the run; 0 before the first."""
    try:
        names = [path.name for path in (run_dir / FOLDER).iterdir()]
    except FileNotFoundError:
        return 0
    return max((int(name) for name in names if name.isdigit()), default=0)


def token_of(attempt: str) -> int:
    """The number in an attempt's name; 0 for a name without one, which any other supersedes."""
    found = _ATTEMPT.fullmatch(attempt)
    return int(found[1]) if found else 0


def refuse_superseded(run_dir: Path, attempt: str) -> None:
    """Raises SupersededError where a later attempt than this one has begun."""
    newest = newest_token(run_dir)
    if newest > token_of(attempt):
        raise SupersededError(
            f"attempt {attempt} of run {run_dir.name} is over: attempt {newest:04d} has begun since; "
            "this process was taken for dead, and nothing that it does counts any more",
            newest,
        )


def note_newer(run_dir: Path, token: int) -> None:
    """Note an attempt that began elsewhere: all earlier ones of this folder are refused from now on."""
    with suppress(OSError):
        (run_dir / FOLDER).mkdir(parents=True, exist_ok=True)
        (run_dir / FOLDER / f"{token:04d}").touch()


def _take(path: Path) -> bool:
    """Whether the file was made here, and not by somebody else before."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True
