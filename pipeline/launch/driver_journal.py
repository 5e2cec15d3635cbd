"""The driver's own journal: failures and restarts as it saw them, and that it ended its job itself.

A driver that was killed leaves a journal without an end, by which the next one's account knows of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.launch.run_context import clear_errors
from pipeline.tracking.incidents import DRIVER, ENDED
from pipeline.tracking.journal import FOLDER, Journal, committed_step, read_journal

logger = logging.getLogger(__name__)


class DriverJournal:
    """The journal of one driver, whose attempts have the end of their names in common with it."""

    def __init__(self, run_dir: Path, job: str) -> None:
        """Raises WorldStateError where the disk refuses."""
        self._run_dir = run_dir
        with clear_errors(run_dir / FOLDER):
            self._journal = Journal(run_dir, f"{DRIVER}{job}")

    def note(self, name: str, step: int, **fields: object) -> None:
        """Record an event; a disk that refuses costs a warning, as the ranks have to say so too."""
        try:
            self._journal.event(name, step, **fields)
        except OSError as error:
            logger.warning("[event] %s is not recorded: %s", name, error.strerror or error)

    def end(self) -> None:
        """Record that the job was ended by its driver, and close."""
        self.note(ENDED, committed_step(read_journal(self._run_dir)))
        self._journal.close()


@contextmanager
def driver_journal(run_dir: Path, job: str) -> Iterator[DriverJournal]:
    """A driver's journal, which has its end on every way out that a process can take by itself."""
    journal = DriverJournal(run_dir, job)
    try:
        yield journal
    finally:
        journal.end()
