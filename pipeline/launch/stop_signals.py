"""SIGINT and SIGTERM as a wish to stop: the first lets training checkpoint, the second ends at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

HEARD = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Hears the stop signals while the context is open; must be opened in the main thread.

    `ray job stop`, Ctrl-C, a preempted pod and a batch scheduler all speak by these two.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        for number in HEARD:
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave

    def stop_wanted(self) -> bool:
        """True once a stop was asked for."""
        return self._stop.is_set()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._stop.is_set():
            raise KeyboardInterrupt
        self._stop.set()
