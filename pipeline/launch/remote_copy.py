"""A working copy of a run at an address: whose it is, and how it is made anew from the store.

A copy has, in a file of its own, a secret for each number that was taken in it, written down before the
store hears of it. It is the run's newest exactly where the store's newest number has one of these
secrets: disks that were cloned have them in common only up to the first number that one of them takes.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.disk import flush
from pipeline.launch.fence import FOLDER as ATTEMPTS
from pipeline.launch.remote_checkpoints import FOLDER as CHECKPOINTS
from pipeline.launch.remote_checkpoints import committed
from pipeline.launch.remote_fence import refuse_superseded_at
from pipeline.launch.remote_lease import NAME as LEASE
from pipeline.tracking.segments import continues, is_segment, num_lines_beyond, seal_of, segments_of, stems
from pipeline.train.checkpoint import list_committed, step_of

if TYPE_CHECKING:  # it imports boto3, which runs in a folder do without
    from pipeline.data.store.objects import ObjectStore

logger = logging.getLogger(__name__)

COPY = "copy"
"""File of a working copy with its secrets; there once the copy is whole."""


def new_secret() -> str:
    """A name that nobody else has."""
    return secrets.token_hex(8)


def note_secret(run_dir: Path, secret: str) -> None:
    """Write a secret down in the copy, for good, before a number is taken with it. Raises OSError."""
    with (run_dir / COPY).open("a", encoding="utf-8") as file:
        file.write(f"{secret}\n")
        file.flush()
        os.fsync(file.fileno())
    flush(run_dir)


def has_secret(run_dir: Path, secret: str) -> bool:
    """Whether a number with that secret was taken in this very copy, or in one that it was cloned from."""
    try:
        return secret in (run_dir / COPY).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return False


def is_newest(store: ObjectStore, run_dir: Path, secret: str) -> bool:
    """Whether the copy took the number with that secret, and has all that was recorded since."""
    return has_secret(run_dir, secret) and continues(run_dir, store.names("journal/"))


def make_anew(store: ObjectStore, run_dir: Path, secret: str, token: int) -> None:
    """Make the copy from the store's records; checkpoints come when an attempt begins.

    Whoever calls it took that number before, with that secret (0 where there is none yet): what earlier
    attempts ship from then on finds the names taken, and what they shipped until then is in this copy.
    Raises SupersededError where a later number was taken since, OSError of the disk.
    """
    names = store.names("")
    # In this order: journals of later attempts, which are not to be ended, are not among these names then.
    refuse_superseded_at(store, token)
    seal_journals_at(store, names)
    if run_dir.exists():
        set_run_aside(run_dir, names)
    run_dir.mkdir(parents=True, exist_ok=True)
    for file, segments in segments_of(names).items():
        lines = [there.data for name in segments if (there := store.read(name))]
        (run_dir / file).parent.mkdir(exist_ok=True)
        (run_dir / file).write_bytes(b"".join(lines))
    for name in names:
        if (
            name != LEASE
            and not is_segment(name)
            and not name.startswith((f"{CHECKPOINTS}/", f"{ATTEMPTS}/"))
        ):
            store.fetch(name, run_dir / name)
    note_secret(run_dir, secret)


def seal_journals_at(store: ObjectStore, names: dict[str, int]) -> None:
    """End every journal of `names`, and add to them what ended it, and what came before that after all."""
    for stem in stems(names):
        while name := seal_of(stem, names):
            if store.create(name, b""):
                names[name] = 0
            elif there := store.read(name):  # made just now by who was frozen: it came in time, and counts
                names[name] = len(there.data)


def set_run_aside(run_dir: Path, names: Mapping[str, int]) -> None:
    """Clear the way for a new copy; one that has what the store lacks is kept beside it, and said."""
    was_whole = (run_dir / COPY).exists()
    aside = run_dir.with_name(f"{run_dir.name}~{secrets.token_hex(4)}")  # no run has such a name
    run_dir.rename(aside)
    if was_whole:
        logger.info("[event] the run went on elsewhere: its copy on this machine is made anew")
    if was_whole and (said := _beyond(aside, names)):
        logger.warning(
            "[event] this machine had %s that were never shipped, and nothing goes on from them: kept in %s, "
            "remove it when nobody needs it",
            said, aside,
        )  # fmt: skip
        return
    shutil.rmtree(aside, ignore_errors=True)


def _beyond(run_dir: Path, names: Mapping[str, int]) -> str:
    """What a copy has that the store lacks, "" for nothing.

    A checkpoint that is missing there only counts where it is newer than the newest: older ones go.
    """
    newest_there = max((step_of(Path(folder)) for folder in committed(names)), default=-1)
    steps = [step_of(folder) for folder in list_committed(run_dir) if step_of(folder) > newest_there]
    parts = [f"{lines} lines of journals"] if (lines := num_lines_beyond(run_dir, names)) else []
    parts += [f"checkpoints of steps {', '.join(map(str, sorted(steps)))}"] if steps else []
    return " and ".join(parts)
