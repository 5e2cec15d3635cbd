"""A submitted job watched from outside: its lines as they come, its RESULT kept, its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pipeline.launch.job import Result, read_result
from pipeline.launch.local_cluster import LocalCluster

ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
POLL_S = 0.3
RAYS_OWN = ("Running entrypoint for job ", "INFO job_manager.py")
"""How Ray's lines at the top of a job's log can be told."""


class JobFollower:
    """Passes on a job's lines until it ended; the RESULT line is kept back, to be the last one."""

    def __init__(self, cluster: LocalCluster, submission: str, show: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._submission = submission
        self._show = show
        self._path: Path = cluster.job_log(submission)
        self._offset = 0
        self._rest = b""
        self.result: Result | None = None

    def follow(self, stop_wanted: Callable[[], bool]) -> str:
        """The status that the job ended with; asks it to stop once that is wanted."""
        asked = False
        while True:
            status = self._status()
            self._show_lines(last=status in ENDED)
            if status in ENDED:
                return status
            if stop_wanted() and not asked:
                self._cluster.call("POST", f"/api/jobs/{self._submission}/stop")
                asked = True
            time.sleep(POLL_S)

    def _status(self) -> str:
        try:
            return str(self._cluster.call("GET", f"/api/jobs/{self._submission}")["status"])
        except TimeoutError:
            return "UNKNOWN"  # two busy cores: the server answers the next time

    def _show_lines(self, *, last: bool) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            fresh = file.read()
        self._offset += len(fresh)
        *lines, self._rest = (self._rest + fresh).split(b"\n")
        if last and self._rest:
            lines, self._rest = [*lines, self._rest], b""
        for raw in lines:
            line = raw.decode("utf-8", errors="replace")
            found = read_result([line])
            if found is not None:
                self.result = found
            elif not any(own in line for own in RAYS_OWN):
                self._show(line)
