"""Which processes belong to a private cluster, and the end of clusters whose owner was killed.

SIGKILL leaves its owner no time to clean up. So each cluster's folder names the owner, and the next
cluster that this user starts ends what is left of those whose owner is dead. A job that still runs
in one is let finish: then the head waits for the sweep after it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import psutil

MARK = "CCS_CLUSTER"
"""Environment variable that every process of a cluster inherits."""
PREFIX = "ccs-"
"""How the folders of clusters begin."""
OWNER = "owner.json"
END_TIMEOUT_S = 5.0
SERVES_EVERYBODY = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""How the titles of Ray's processes begin that run no job; without an agent the whole node ends."""


def cluster_processes(mark: str, head: int) -> list[psutil.Process]:
    """All living processes that a cluster started, directly or not.

    Ray's own stay in the head's session, and some overwrite their environment with a title; jobs
    have sessions of their own, and the mark.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            ended = process.status() == psutil.STATUS_ZOMBIE
            if not ended and (os.getsid(process.pid) == head or process.environ().get(MARK) == mark):
                found.append(process)
    return found


def end_processes(mark: str, head: int) -> None:
    """End a cluster's processes, politely and then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        left = cluster_processes(mark, head)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        psutil.wait_procs(left, timeout=END_TIMEOUT_S)


def job_processes(mark: str, head: int) -> list[psutil.Process]:
    """Those of a cluster's living processes that run jobs: their drivers have sessions of their own.

    Ray names its workers by what they run.
    """
    found = []
    for process in cluster_processes(mark, head):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline()[:1])
            works = title.startswith("ray::") and not title.startswith(SERVES_EVERYBODY)
            if works or _session(process) not in (head, None):
                found.append(process)
    return found


def kill_processes(processes: list[psutil.Process]) -> None:
    """Kill them, and wait for their end a bounded time."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=END_TIMEOUT_S)


def record_owner(folder: Path, mark: str, head: int) -> None:
    """Write into a cluster's folder that it lives for this process."""
    owner = {"pid": os.getpid(), "started_s": psutil.Process().create_time(), "place": _place()}
    part = folder / f"{OWNER}.part"
    part.write_text(json.dumps(owner | {"mark": mark, "head": head}), encoding="utf-8")
    part.replace(folder / OWNER)


def end_stale_clusters(temp: Path) -> None:
    """End and remove this user's clusters below `temp` whose owner died, unless a job still runs in one."""
    for file in temp.glob(f"{PREFIX}*/{OWNER}"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not ours, or being removed
            if file.stat().st_uid != os.geteuid():
                continue
            owner = json.loads(file.read_text(encoding="utf-8"))
            mark, head = str(owner["mark"]), int(owner["head"])
            if owner["place"] != _place() or _lives(owner) or _job_runs(mark, head):
                continue
            end_processes(mark, head if _head_is_marked(mark, head) else -1)
            shutil.rmtree(file.parent, ignore_errors=True)


def _place() -> list[str]:
    """Machine and process namespace: only there does a process's number mean something."""
    return [socket.gethostname(), str(Path("/proc/self/ns/pid").readlink())]


def _lives(owner: dict[str, Any]) -> bool:
    try:
        process = psutil.Process(int(owner["pid"]))
        return process.create_time() == owner["started_s"] and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _job_runs(mark: str, head: int) -> bool:
    """Whether a marked process lives outside the head's session, as only jobs do."""
    return any(_session(process) not in (head, None) for process in cluster_processes(mark, -1))


def _head_is_marked(mark: str, head: int) -> bool:
    """Whether the session is still the head's: its number may have been given to a stranger since."""
    return any(_session(process) == head for process in cluster_processes(mark, -1))


def _session(process: psutil.Process) -> int | None:
    """The session's number; None where the process has ended."""
    try:
        return os.getsid(process.pid)
    except OSError:
        return None
