"""Kills this process, really, when it is where the point says.

A seam (seams_of_*.py) says where the rank is; this says whether that is the place. The kill is by pid, of
this rank or of its whole process group (every rank and their launcher), at the very instruction: nothing is
flushed, closed or told.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.hits import Hit, note_hit
from tests.chaos.points import Strike

NOWHERE = -1


class Kill:
    """What a rank is to die of, attempt by attempt."""

    def __init__(self, strikes: Sequence[Strike | None], folder: Path) -> None:
        """`strikes` are those of the attempts, in their order; those that came are noted in `folder`."""
        self._strikes, self._folder = strikes, folder
        self.strike: Strike | None = None
        self.rank = 0
        self.steps_done = 0
        self._left = NOWHERE
        self._passed = 0

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
        return self.strike.part(parts)

    def count_down(self, places: int) -> None:
        """From here on, strike at one of `places` places."""
        self._left, self._passed = self.part(places), 0

    def place(self, phase: str, name: str) -> None:
        """One of the places that are counted."""
        if self._left != NOWHERE and self.strike and self.strike.phase == phase:
            if self._left == 0:
                self.hit(name)
            self._left -= 1
            self._passed += 1

    def last_place(self, phase: str, name: str) -> None:
        """The end of the phase: strike where it had fewer places than were expected.

        A phase of which no place was passed is not struck: its seams are gone, which the campaign is to say.
        """
        if self._left != NOWHERE and self.strike and self.strike.phase == phase:
            if self._passed:
                self.hit(f"{name}, past {self._passed} places")
            self._left = NOWHERE

    def hit(self, name: str) -> None:
        """Die. What was struck is noted before."""
        self.note(name, os.getpid())
        assert self.strike is not None
        if self.strike.whole_machine:
            os.killpg(0, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def hit_other(self, name: str, pid: int) -> None:
        """Kill that process, on which this rank depends, and go on."""
        self.note(name, pid)
        os.kill(pid, signal.SIGKILL)

    def note(self, name: str, pid: int) -> None:
        """Write down that the strike comes here."""
        assert self.strike is not None
        note_hit(self._folder, Hit(self.strike.phase, name, pid))
