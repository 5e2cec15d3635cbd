"""What each worker process of a training job loads before anything else; light itself.

A process in reserve loads while ranks train beside it, on the same cores of a small machine. So it then takes
what they leave: a thread of the lowest kind of priority imports, since a process without privileges cannot
take its own priority back.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil

RANK_TITLE = "ray::RayTrainWorker"
"""How the title of a rank's process begins, once it is one."""


def load_everything() -> None:
    """Import what any worker of the job will need: in the background where ranks are at work on this node.

    At a start, and at a restart without processes in reserve, nothing trains: then it is done at once.
    """
    with ThreadPoolExecutor(1) as executor:
        executor.submit(_load, lowest=ranks_at_work()).result()


def load_at_once() -> None:
    """The same for the processes of a search, where the ranks of another trial are nearly always at work.

    One that a trial waits for would get next to nothing beside them, and one in reserve will be the next
    trial's: no load is in vain, so it may as well be done now.
    """
    _load(lowest=False)


def ranks_at_work() -> bool:
    """Whether Ray's agent of this node has a process of a rank."""
    with suppress(psutil.Error):
        return any(map(_is_rank, psutil.Process(os.getppid()).children()))
    return False


def _is_rank(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return " ".join(process.cmdline()[:1]).startswith(RANK_TITLE)
    return False


def _load(lowest: bool) -> None:
    if lowest and hasattr(os, "SCHED_IDLE"):  # Linux, where a thread has a priority of its own
        with suppress(OSError):
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_IDLE, os.sched_param(0))
    import pipeline.launch.ray_attempt  # noqa: F401, PLC0415
