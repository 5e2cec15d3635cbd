"""A submitted job watched from outside: its lines as they come, its RESULT kept, its end."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import WorldStateError
from pipeline.launch.job import Result, read_result

ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
POLL_S = 0.3
SILENCE_S = 60.0
"""Longest without an answer of the head or a line of the job: busy cores are slow, not that slow."""
NO_ANSWER = (OSError, http.client.HTTPException, ValueError)
"""How a call without an answer ends: refused, timed out, an error of the server, cut short."""
RAYS_OWN = ("Running entrypoint for job ", "INFO job_manager.py")
"""How Ray's lines at the top of a job's log can be told."""


class HeadLostError(WorldStateError):
    """The head that a job was submitted to is gone, and the job with it."""


class Cluster(Protocol):
    """What of a LocalCluster is needed to watch a job."""

    def call(self, method: str, path: str) -> Any:  # noqa: ANN401 - JSON
        """The JSON answer of the job server."""

    def job_log(self, submission: str) -> Path:
        """The file that the job's output goes to."""

    def head_lives(self) -> bool:
        """False once the head's process ended."""


class JobFollower:
    """Passes on a job's lines until it ended; the RESULT line is kept back, to be the last one."""

    def __init__(self, cluster: Cluster, submission: str, show: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._submission = submission
        self._show = show
        self._path: Path = cluster.job_log(submission)
        self._offset = 0
        self._rest = b""
        self._last_sign_s = time.monotonic()
        self.result: Result | None = None

    def follow(self, stop_wanted: Callable[[], bool]) -> str:
        """The status that the job ended with; asks it to stop once that is wanted.

        A call that is not answered is made again at the next poll. Raises HeadLostError where the
        head has ended, or gave no sign for `SILENCE_S`.
        """
        asked = False
        while True:
            answer = self._call("GET", "")
            status = str(answer["status"]) if isinstance(answer, dict) else "UNKNOWN"
            self._show_lines(last=status in ENDED)
            if status in ENDED:
                return status
            self._refuse_dead_head()
            if stop_wanted() and not asked:
                asked = self._call("POST", "/stop") is not None
            time.sleep(POLL_S)

    def _call(self, method: str, action: str) -> Any:  # noqa: ANN401 - JSON
        """What the server says about the job; None without an answer."""
        try:
            answer = self._cluster.call(method, f"/api/jobs/{self._submission}{action}")
        except NO_ANSWER:
            return None
        self._last_sign_s = time.monotonic()
        return answer

    def _refuse_dead_head(self) -> None:
        silent_s = time.monotonic() - self._last_sign_s
        if self._cluster.head_lives() and silent_s <= SILENCE_S:
            return
        self._show_lines(last=True)
        how = f"gave no sign for {silent_s:.0f}s" if self._cluster.head_lives() else "ended"
        raise HeadLostError(f"the local Ray head {how} while the job ran")

    def _show_lines(self, *, last: bool) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            fresh = file.read()
        if fresh:
            self._last_sign_s = time.monotonic()
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
