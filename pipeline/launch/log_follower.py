"""Shows another process's log lines as they are written, without a prefix and each once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

logger = logging.getLogger(__name__)

POLL_S = 0.2


class LogFollower:
    """Logs the lines of a growing file, which need not exist yet, until the context closes.

    `begun` is called once, before the first line. A file rather than a pipe: it works across nodes
    that share the run's folder, outlives the driver, and stays with the run.
    """

    def __init__(self, path: Path, begun: Callable[[], None]) -> None:
        self._path = path
        self._begun = begun
        self._offset = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-follower", daemon=True)

    def __enter__(self) -> LogFollower:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(POLL_S):
            self._show_whole_lines()
        self._show_whole_lines()

    def _show_whole_lines(self) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                fresh = file.read()
        except FileNotFoundError:
            return
        whole = fresh[: fresh.rfind(b"\n") + 1]
        if whole and self._offset == 0:
            self._begun()
        self._offset += len(whole)
        for line in whole.decode("utf-8", errors="replace").splitlines():
            logger.info("%s", line)
