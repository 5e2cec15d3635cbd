"""Mapping a function over tasks, in their order: here, or by processes of this machine.

Packing takes such a map as an argument, so that a cluster's tasks can stand in for processes
(`pipeline/launch/ray_map.py`). Processes are spawned, never forked, and end with the one that
started them, even where that is killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import Any, Protocol, Self, TypeVar

import cv2
import psutil

from pipeline.data.signal_mask import held_back
from pipeline.errors import WorldStateError

_T = TypeVar("_T")
_R = TypeVar("_R")
_AHEAD = 3
"""Tasks handed out a process, so that none waits for the one that collects results."""


class MapTasks(Protocol):
    """Maps a function over tasks; results come in the order of the tasks, errors at their task's turn."""

    def __call__(self, function: Callable[[_T], _R], tasks: Sequence[_T], /) -> Iterator[_R]:
        """The results. Function and tasks must be picklable: a module's function, or a partial of one."""


def in_turn(function: Callable[[_T], _R], tasks: Sequence[_T], /) -> Iterator[_R]:
    """The results, worked out by the calling thread."""
    return map(function, tasks)


class Processes:
    """A map by `count` processes of this machine, by default one for each core, while the context is open.

    They start when they are first needed, and end at once with the context.
    """

    def __init__(self, count: int = 0) -> None:
        self._count = count or len(psutil.Process().cpu_affinity() or [1])
        self._pool: ProcessPoolExecutor | None = None
        self._lifeline: Connection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool and self._lifeline:
            self._lifeline.close()  # ends the processes, whatever they are at
            self._pool.shutdown(wait=True, cancel_futures=True)

    def __call__(self, function: Callable[[_T], _R], tasks: Sequence[_T], /) -> Iterator[_R]:
        """The results; raises WorldStateError where a process is killed, by want of memory for example."""
        if min(self._count, len(tasks)) <= 1:
            yield from map(function, tasks)
            return
        try:
            yield from windowed(self._started(), function, tasks, _AHEAD * self._count)
        except BrokenProcessPool as error:
            raise WorldStateError(
                "a packing process was killed from outside (no memory left?); run the same command again to "
                "go on, with fewer --processes"
            ) from error

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")
            theirs, self._lifeline = spawn.Pipe(duplex=False)
            self._pool = _DeafPool(self._count, spawn, initializer=_begin_process, initargs=(theirs,))
        return self._pool


def windowed(pool: Executor, function: Callable[[_T], _R], tasks: Sequence[_T], ahead: int) -> Iterator[_R]:
    """The results, in the order of the tasks, of which at most `ahead` are with the pool at a time."""
    waiting: deque[Future[_R]] = deque(pool.submit(function, task) for task in tasks[:ahead])
    for number in range(len(tasks)):
        result = waiting.popleft().result()
        if number + ahead < len(tasks):
            waiting.append(pool.submit(function, tasks[number + ahead]))
        yield result


class _DeafPool(ProcessPoolExecutor):
    """Processes that Ctrl-C does not reach: the one that collects hears it, and ends them."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:  # noqa: ANN401 - as the base class has it
        """Submit a task, which may start a process."""
        with held_back(signal.SIGINT):
            return super().submit(*args, **kwargs)


def _begin_process(connection: Connection) -> None:
    """Prepares a process: one thread of OpenCV, gone when the other end of a pipe is."""
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()


def _end_with(connection: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        connection.recv_bytes()
    os._exit(1)
