"""Ends the journals of earlier attempts: whoever still has one open writes to nothing that counts.

An attempt that was given up may wake up with its journal open. Its file is replaced by a copy of what it
had when the next attempt began, read-only as a sign of it; the open one has no name any more.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from pipeline.disk import flush
from pipeline.tracking.journal import FOLDER

_SEALED = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
_ATTEMPT = re.compile(r"\d+-(.+)\.jsonl")


def seal_journals(run_dir: Path, is_over: Callable[[str], bool]) -> None:
    """Seal the journal of every attempt that `is_over` says is; once each. Raises OSError."""
    folder = run_dir / FOLDER
    for path in sorted(folder.glob("*.jsonl")):
        attempt = _ATTEMPT.fullmatch(path.name)
        if attempt and is_over(attempt[1]) and path.stat().st_mode & stat.S_IWUSR:
            _seal(path)
    if folder.is_dir():
        flush(folder)


def _seal(path: Path) -> None:
    part = path.with_suffix(".sealing")
    part.unlink(missing_ok=True)  # of one that was killed here: read-only, so only root could open it again
    with part.open("xb") as file:
        file.write(path.read_bytes())
        file.flush()
        os.fchmod(file.fileno(), _SEALED)
        os.fsync(file.fileno())
    part.replace(path)
