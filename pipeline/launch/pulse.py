"""The signs of life of one rank: a small file that a thread rewrites, for the driver to look at.

A file in the run's folder reaches the driver from every node wherever the checkpoints do. A thread
rewrites it, so that a step of milliseconds pays for two assignments, the newest phase is always told,
and a stopped process is told apart from a loop that stands still: the one falls silent, the other
goes on saying that it stands.
"""

from __future__ import annotations

import json
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pipeline.train.context import Phase

BEAT_S = 0.5
"""Between two signs of life."""
FILE_BYTES = 512
"""Every beat is padded to this: overwritten in place, it needs no room on a disk that is full."""
Doing = Phase | Literal["ended"]


@dataclass(frozen=True)
class Place:
    """Where a rank's process is, well enough to end that one and no other."""

    node: str
    """Ray's id of the node."""
    pid: int
    born_s: float
    """When the process began, by the clock of its node: a process id may be given again."""
    group: str
    """Ray's id of the placement group whose resources it has, or empty."""


@dataclass(frozen=True)
class Beat:
    """One sign of life. The counters only ever rise, so no clock of another machine is trusted."""

    place: Place
    ticks: int
    """Beats so far: a process that is stopped does not count on."""
    moves: int
    """Phases that the loop entered so far: one that hangs does not count on."""
    steps: int
    """Optimizer steps among them."""
    doing: Doing


class Pulse:
    """Beats for one rank until it is closed."""

    def __init__(self, path: Path, place: Place) -> None:
        self._path = path
        self._place = place
        self._now: tuple[int, int, Doing] = (0, 0, "start")  # exchanged as a whole: two threads see it
        self._ticks = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(FILE_BYTES))
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def enter(self, phase: Phase) -> None:
        """Note that the loop moved on."""
        moves, steps, _ = self._now
        self._now = moves + 1, steps + (phase == "step"), phase

    def close(self) -> None:
        """Say that this rank is done, and beat no more."""
        moves, steps, _ = self._now
        self._now = moves + 1, steps, "ended"
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(BEAT_S if self._ticks else 0.0)
            self._ticks += 1
            moves, steps, doing = self._now
            write_beat(self._path, Beat(self._place, self._ticks, moves, steps, doing))


def beat_file(run_dir: Path, attempt: str, rank: int) -> Path:
    """Where a rank of an attempt gives its signs of life."""
    return run_dir / "log" / f"pulse-{attempt}" / f"rank_{rank}"


def write_beat(path: Path, beat: Beat) -> None:
    """Overwrite the file, which is there; a disk that refuses makes a rank silent and fails nothing."""
    line = json.dumps(asdict(beat)).encode()
    with suppress(OSError), path.open("r+b") as file:  # opened each time: NFS shows others what was closed
        file.write(line.ljust(FILE_BYTES))


def read_beat(path: Path) -> Beat | None:
    """The newest beat; None before the first, and for one that is torn as it is being written."""
    try:
        told = json.loads(path.read_bytes())
        return Beat(place=Place(**told.pop("place")), **told)
    except (OSError, ValueError, KeyError, TypeError):
        return None
