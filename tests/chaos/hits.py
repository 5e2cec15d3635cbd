"""The kills of a point that really came, as the process that was to die noted them, against those planned."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.chaos.points import Attempt

LOG = "strikes.jsonl"
"""In the folder of a point."""


@dataclass(frozen=True)
class Hit:
    """One kill, noted at the instruction before it."""

    phase: str
    place: str
    """Where in the phase."""
    pid: int
    """Of the process that died first."""


def note_hit(folder: Path, hit: Hit) -> None:
    """Write it down, in one line that is there although its writer dies next."""
    descriptor = os.open(folder / LOG, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    os.write(descriptor, json.dumps(asdict(hit)).encode() + b"\n")
    os.close(descriptor)


def read_hits(folder: Path) -> list[Hit]:
    """The kills of a point so far."""
    log = folder / LOG
    return [Hit(**json.loads(line)) for line in log.read_text().splitlines()] if log.exists() else []


def missed(attempts: Sequence[Attempt], hits: Sequence[Hit]) -> str:
    """In what the kills that came are not those of the attempts; "" where they are."""
    planned = [attempt.strike.phase for attempt in attempts if attempt.strike]
    came = [hit.phase for hit in hits]
    return "" if came == planned else f"to be killed in {planned}, killed in {came}"
