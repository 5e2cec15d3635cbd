"""Kills this process, really, when it is where the point says.

A seam (seams_of_steps.py, seams_of_saves.py) says where the rank is; this says whether that is the place.
The kill is by pid, of this rank or of its whole process group (every rank and their launcher), at the very
instruction: nothing is flushed, closed or told.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.points import Strike

NOWHERE = -1


class Kill:
    """What a rank is to die of, attempt by attempt."""

    def __init__(self, strikes: Sequence[Strike | None], log: Path) -> None:
        """`strikes` are those of the attempts, in their order; `log` notes the ones that came."""
        self._strikes, self._log = strikes, log
        self.strike: Strike | None = None
        self.rank = 0
        self.steps_done = 0
        self._left = NOWHERE

    def begin(self, attempt: int, rank: int) -> None:
        """This process is a rank of the attempt of that number, counted from 1."""
        self.rank = rank
        self.strike = self._strikes[attempt - 1] if attempt <= len(self._strikes) else None

    def wants(self, phase: str, step: int | None = None) -> bool:
        """Whether the strike is of this phase, rank and step (the one at hand, if none is given)."""
        step = self.steps_done if step is None else step
        wanted = self.strike
        return wanted is not None and (wanted.phase, wanted.step, wanted.rank) == (phase, step, self.rank)

    def part(self, parts: int) -> int:
        """Which of so many parts of its phase the strike lies in."""
        assert self.strike is not None
        return int(self.strike.fraction * parts)

    def count_down(self, places: int) -> None:
        """From here on, strike at one of `places` places."""
        self._left = self.part(places)

    def place(self, phase: str, name: str) -> None:
        """One of the places that are counted."""
        if self._left != NOWHERE and self.strike and self.strike.phase == phase:
            if self._left == 0:
                self.hit(name)
            self._left -= 1

    def last_place(self, name: str) -> None:
        """Strike at the latest here, where the phase had fewer places than were expected."""
        if self._left != NOWHERE:
            self.hit(name)

    def hit(self, name: str) -> None:
        """Die. What was struck is noted before."""
        self.note(name)
        assert self.strike is not None
        if self.strike.whole_machine:
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def note(self, name: str) -> None:
        """Write down that the strike comes here."""
        assert self.strike is not None
        line = json.dumps({"phase": self.strike.phase, "place": name, "pid": os.getpid()}) + "\n"
        descriptor = os.open(self._log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
        os.write(descriptor, line.encode())
        os.close(descriptor)
