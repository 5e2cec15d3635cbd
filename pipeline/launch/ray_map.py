"""How a job spreads its work: over the processes of this machine, or over the tasks of a Ray cluster."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import cv2

from pipeline.data.packing.parallel import MapTasks, Processes
from pipeline.errors import ConfigError, PipelineError, WorldStateError

_T = TypeVar("_T")
_R = TypeVar("_R")
_AHEAD = 3
"""Tasks handed out a CPU, so that none waits for the one that collects results."""


@contextmanager
def task_map(processes: int = 0) -> Iterator[MapTasks]:
    """A map by the cluster at RAY_ADDRESS, which a Ray job has set, else by processes of this machine.

    `processes` are those that work at a time, 0 for one a core; raises ConfigError for fewer.
    """
    if processes < 0:
        raise ConfigError(f"--processes {processes} is below 0; type 0 for one a core, or how many")
    if not os.environ.get("RAY_ADDRESS"):
        with Processes(processes) as map_tasks:
            yield map_tasks
        return
    from pipeline.launch.ray_cluster import connected  # noqa: PLC0415 - it brings torch along

    with connected() as room:
        yield RayTasks(processes or _AHEAD * room.cpus)


class RayTasks:
    """A map by tasks of the cluster that this process is connected to, at most `count` at a time."""

    def __init__(self, count: int) -> None:
        self._count = max(count, 1)

    def __call__(self, function: Callable[[_T], _R], tasks: Sequence[_T], /) -> Iterator[_R]:
        """The results, in the order of the tasks; closing the iterator ends what still runs.

        A task whose node dies is run again elsewhere. Raises the task's own PipelineError, or
        WorldStateError where Ray gives it up.
        """
        import ray  # noqa: PLC0415 - only after `connected` has set the environment
        from ray.exceptions import RayError, RayTaskError  # noqa: PLC0415

        remote: Any = ray.remote(num_cpus=1, max_retries=3)(_run)
        waiting: deque[Any] = deque(remote.remote(function, task) for task in tasks[: self._count])
        try:
            for number in range(len(tasks)):
                result: _R = ray.get(waiting[0])
                waiting.popleft()
                if number + self._count < len(tasks):
                    waiting.append(remote.remote(function, tasks[number + self._count]))
                yield result
        except RayTaskError as error:
            if isinstance(error.cause, PipelineError):
                raise error.cause from None
            raise
        except RayError as error:
            raise WorldStateError(
                f"Ray gave up a packing task ({type(error).__name__}); run the same command again to go on"
            ) from error
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)


def _run(function: Callable[[_T], _R], task: _T) -> _R:
    cv2.setNumThreads(1)  # Ray gives a task one CPU
    return function(task)
