"""The other end of nursery.py: a process that forks the attempts of torchrun, each with a time-out."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType

import psutil

from tests.chaos.hits import Hit
from tests.chaos.points import Strike
from tests.chaos.rank import Orders

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300.0
"""An attempt takes seconds."""
GRACE_S = 60.0
"""What the nursery may take longer than an attempt."""


@dataclass(frozen=True)
class Ending:
    """How an attempt ended."""

    code: int
    """Exit code of torchrun, or minus the signal that killed all of it."""
    ranks: Mapping[str, int]
    """Process → the same of each rank that torchrun waited for; none where it was killed with them."""
    stuck: bool
    """Whether it had to be killed as its time was over."""
    left: Sequence[str]
    """Processes that it left running."""

    def other_than(self, strike: Strike | None, hits: Sequence[Hit]) -> str:
        """In what an attempt of that strike should have ended otherwise; "" where it ended so.

        The codes of ranks that were not struck are not looked at: they hear of it in no order.
        """
        said = f"ended with {self.code}, its ranks with {sorted(self.ranks.values())}"
        if self.stuck:
            return "did not end by itself"
        if self.left:
            return f"{said} and left running {self.left}"
        if strike is None or not strike.ends:
            return "" if self.code == 0 else said
        if strike.whole_machine:
            return "" if self.code == -signal.SIGKILL else said
        victim = self.ranks.get(str(hits[-1].pid)) if hits else None
        return "" if self.code == 1 and victim == -signal.SIGKILL else said


class Nursery:
    """Talks to nursery.py for as long as the context is open."""

    def __init__(self, environment: Mapping[str, str] = MappingProxyType({})) -> None:
        """`environment` is what the attempts have beside this process's own."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nursery"], cwd=ROOT, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C must leave it there to end what it started
        )  # fmt: skip

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(timeout=0.0 if error else GRACE_S)
        except subprocess.TimeoutExpired:  # in the middle of an attempt
            self._kill()
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        """Of the process that forks."""
        return self._process.pid

    def attempt(
        self, orders: Orders, world: int, argv: Sequence[str], timeout_s: float = TIMEOUT_S
    ) -> Ending:
        """How torchrun with so many ranks ended, at the latest when its time is over."""
        assert self._process.stdin
        assert self._process.stdout
        command = {"orders": orders.to_dict(), "world": world, "argv": list(argv), "timeout_s": timeout_s}
        command["log"] = str(orders.folder / "log")
        print(json.dumps(command), file=self._process.stdin, flush=True)
        # A line is written at once, so there is a whole one where there is anything.
        if not select.select([self._process.stdout], [], [], timeout_s + GRACE_S)[0]:
            self._kill()
            raise TimeoutError(f"the nursery does not answer; {command['log']} has what was said")
        return Ending(**json.loads(self._process.stdout.readline()))

    def _kill(self) -> None:
        """The nursery and all that it started, which are its descendants, whatever group they are in."""
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.kill()
        self._process.wait()
