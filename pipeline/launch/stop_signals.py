"""Signals as a wish to stop: the first lets training checkpoint, the second ends it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Protocol

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopWish(Protocol):
    """Whoever knows whether what is running shall stop: signals, or a search of which it is a part."""

    def stop_wanted(self) -> bool:
        """True once a stop was asked for."""
        ...


class StopSignals:
    """Hears the stop signals while the context is open; must be opened in the main thread.

    `ray job stop`, Ctrl-C, a preempted pod, a batch scheduler and a closed terminal speak by these.
    From the third on they are ignored, so that the clean-up that the second began is not cut short.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._interrupted = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        for number in HEARD:
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: the terminal may go
            self._before[number] = signal.getsignal(number)
        self.listen()
        return self

    def listen(self) -> None:
        """Hear the signals, again after a library took them: `ray.init` sets a SIGTERM handler that kills."""
        for number in self._before:
            signal.signal(number, self._hear)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal gave

    def stop_wanted(self) -> bool:
        """True once a stop was asked for."""
        return self._stop.is_set()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._stop.is_set() and not self._interrupted:
            self._interrupted = True
            raise KeyboardInterrupt
        self._stop.set()
