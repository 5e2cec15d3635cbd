"""Signals held back while a process is started, so that the child never hears them.

Ctrl-C and a preemption's SIGTERM go to the whole process group. What becomes of the work is for the
parent to say; its processes end when it does. A mask is inherited and holds from the child's first
instruction on, where a handler of its own would come too late.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_back(*signals: signal.Signals) -> Iterator[None]:
    """Signals that this thread, and a child started in it for good, are not given."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
