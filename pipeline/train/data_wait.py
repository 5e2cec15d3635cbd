"""How long training waits for data, and what the wait is down to."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pipeline.data.loader import LoaderUsage
from pipeline.train import metrics

NOTICEABLE_SHARE = 0.10
"""Share of the time spent on waiting from which its cause is named."""
_BUSY_SHARE = 0.7
"""Workers that read for less of the time than this are not what training waits for."""


@dataclass(frozen=True)
class WaitWindow:
    """A stretch of training: how long it was, how much of it was a wait, and what reading cost in it."""

    seconds: float
    wait_s: float
    usage: LoaderUsage
    """Of this stretch alone, but for `workers`."""
    is_first: bool = False
    """Whether it holds the start of the workers and of the first downloads."""

    @property
    def share(self) -> float:
        """Share of the time spent on waiting for data."""
        return min(self.wait_s / max(self.seconds, 1e-9), 1.0)

    @property
    def bottleneck(self) -> str:
        """What would have to be faster for a shorter wait: `store`, `decode`, `hand-off` or `start`.

        Hand-off is what lies between reading and training: workers that have nothing to do, as they were
        given too little ahead, and the time from a finished sample to a batch. In the first stretch it is
        the start: processes that begin, and the first shards on their way.
        """
        store_s, decode_s = self.usage.store_s, self.usage.decode_s
        if self.usage.workers:
            idle = store_s + decode_s < _BUSY_SHARE * self.usage.workers * self.seconds
        else:
            idle = self.wait_s - store_s - decode_s > max(store_s, decode_s)
        if idle:
            return "start" if self.is_first else "hand-off"
        return "store" if store_s > decode_s else "decode"

    def values(self) -> dict[str, float]:
        """What the curves show of it on this rank."""
        samples = max(self.usage.samples, 1)
        return {
            metrics.STORE_S_PER_SAMPLE: self.usage.store_s / samples,
            metrics.DECODE_S_PER_SAMPLE: self.usage.decode_s / samples,
            metrics.WORKER_RESTARTS: float(self.usage.restarts),
        }


class DataWait:
    """Counts waits window by window. The clock is time.perf_counter."""

    def __init__(self, usage: LoaderUsage) -> None:
        self._usage = usage
        self._start_s = time.perf_counter()
        self._wait_s = self._idle_s = 0.0
        self._is_first = True

    def waited(self, seconds: float) -> None:
        """Note time spent on waiting for data."""
        self._wait_s += seconds

    def paused(self, seconds: float) -> None:
        """Note time in which nobody trained."""
        self._idle_s += seconds

    def window(self, usage: LoaderUsage) -> WaitWindow:
        """What happened since the last call, up to the loader's usage now; a new window begins."""
        now, before = time.perf_counter(), self._usage
        spent = LoaderUsage(
            usage.samples - before.samples,
            usage.store_s - before.store_s,
            usage.decode_s - before.decode_s,
            usage.workers,
            usage.restarts - before.restarts,
        )
        window = WaitWindow(now - self._start_s - self._idle_s, self._wait_s, spent, self._is_first)
        self._start_s, self._wait_s, self._idle_s, self._usage = now, 0.0, 0.0, usage
        self._is_first = False
        return window
