"""How long a request may take before it is asked for a second time, elsewhere, at once.

A server that stalls one request in a hundred for ten seconds would make the average request five times
as slow. The second request costs one more GET; the first answer counts.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from pipeline.data.store.transport import Part, Transient

_TIMES_THE_MEDIAN = 3.0
_LEAST_S = 0.05
_UNKNOWN_S = 0.5
"""Patience while nothing is known."""
_KNOWN_FROM = 8
_REMEMBERED = 64
_SPARE_MOST = 8.0
_SPARE_PER_REQUEST = 0.1
"""One second request to ten first ones in the long run: a server that is slow as a whole is not pressed."""


class Patience:
    """The usual time of requests by their size, and the right to a second request. Threads may share it."""

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}
        self._spare = _SPARE_MOST / 2
        self._lock = threading.Lock()

    def limit_s(self, num_bytes: int) -> float:
        """Seconds after which a request of this size is unusual."""
        with self._lock:
            times = self._times.get(_size_class(num_bytes), ())
            if len(times) >= _KNOWN_FROM:
                usual_s = statistics.median(times)
            else:  # like the slowest size that is known
                known = [statistics.median(t) for t in self._times.values() if len(t) >= _KNOWN_FROM]
                usual_s = max(known, default=_UNKNOWN_S / _TIMES_THE_MEDIAN)
            return max(_LEAST_S, _TIMES_THE_MEDIAN * usual_s)

    def note(self, num_bytes: int, seconds: float) -> None:
        """Remember a request that was answered."""
        with self._lock:
            self._times.setdefault(_size_class(num_bytes), deque(maxlen=_REMEMBERED)).append(seconds)
            self._spare = min(_SPARE_MOST, self._spare + _SPARE_PER_REQUEST)

    def may_ask_again(self) -> bool:
        """True, and one less to spare, where a second request is allowed."""
        with self._lock:
            if self._spare < 1.0:
                return False
            self._spare -= 1.0
            return True


def first_answer(patience: Patience, num_bytes: int, request: Callable[[], Part]) -> Part:
    """What `request` returns, asked for a second time where it takes unusually long; raises what it raises.

    Both run in threads of their own, which end with their sockets' time-out at the latest.
    """
    answers: queue.SimpleQueue[Part | BaseException] = queue.SimpleQueue()

    def ask() -> None:
        begun = time.monotonic()
        try:
            part = request()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
            answers.put(error)
        else:
            patience.note(num_bytes, time.monotonic() - begun)
            answers.put(part)

    limit_s = patience.limit_s(num_bytes)
    threading.Thread(target=ask, name="shard-request", daemon=True).start()
    try:
        answer = answers.get(timeout=limit_s)
    except queue.Empty:
        again = patience.may_ask_again()
        if again:
            threading.Thread(target=ask, name="shard-request-again", daemon=True).start()
        answer = answers.get()
        if again and isinstance(answer, Transient):
            with suppress(queue.Empty):  # the other one may be silent for long: better ask a third time
                answer = answers.get(timeout=limit_s)
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _size_class(num_bytes: int) -> int:
    return num_bytes.bit_length() // 2
