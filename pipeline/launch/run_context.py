"""The surroundings of one rank, kept in the run's folder: what Ray Train and torchrun both use.

Rank 0 writes the journal, as long as no later attempt has begun; every rank hears a stop by a file in
the run's folder, which reaches workers on other nodes wherever their checkpoints do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import WorldStateError
from pipeline.launch.fence import newest_token, refuse_superseded, token_of
from pipeline.launch.pulse import Pulse
from pipeline.tracking.journal import FOLDER, Journal
from pipeline.tracking.seal import seal_journals
from pipeline.train.context import Phase, SavePoint
from pipeline.world import World

STOP_POLL_S = 0.5
"""Least time between two looks for the stop file: a step of milliseconds must not pay for a stat."""


class JournaledContext:
    """The RunContext of one rank of one attempt, on a journal and a stop file in `run_dir`."""

    def __init__(
        self,
        run_dir: Path,
        world: World,
        attempt: str,
        tracking: str = "",
        stop_wanted: Callable[[], bool] = lambda: False,
        pulse: Pulse | None = None,
        saved: Callable[[], None] = lambda: None,
    ) -> None:
        """`saved` is called when a checkpoint, or its score, and the journal up to it are on the disk."""
        self._world = world
        self._run_dir = run_dir
        self._attempt = attempt
        self._tracking = tracking
        self._journal = self._open_journal() if world.is_main else None
        self._stop_file = stop_file(run_dir, attempt)
        self._stop_wanted = stop_wanted
        self._pulse = pulse
        self._saved = saved
        self._stop = False
        self._last_look_s = -STOP_POLL_S
        self._last_step = 0
        self.phase_s: dict[Phase, float] = {}

    def _open_journal(self) -> Journal:
        """The journal of this attempt, after those of earlier ones were ended."""
        refuse_superseded(self._run_dir, self._attempt)
        token = token_of(self._attempt)
        with clear_errors(self._run_dir / FOLDER):
            seal_journals(self._run_dir, lambda attempt: 0 < token_of(attempt) < token)
            return Journal(self._run_dir, self._attempt)

    @property
    def world(self) -> World:
        """The place of this rank among all."""
        return self._world

    @property
    def attempt(self) -> str:
        """The token of this attempt."""
        return self._attempt

    @property
    def tracking(self) -> str:
        """Where a person can browse the run."""
        return self._tracking

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Add the time inside to the phase's total, which the journal gets when the context closes.

        Who watches this rank is told that the loop moved on.
        """
        if self._pulse:
            self._pulse.enter(name)
        start_s = time.monotonic()
        try:
            yield
        finally:
            self.phase_s[name] = self.phase_s.get(name, 0.0) + time.monotonic() - start_s

    def mark(self, point: SavePoint, step: int) -> None:
        """Refuse to go on once a later attempt has begun; flush the journal before a commit or a score."""
        if self._journal:
            refuse_superseded(self._run_dir, self._attempt)
            if point in ("before_commit", "score"):
                with clear_errors(self._run_dir / FOLDER):
                    self._journal.flush()
            if point == "saved":
                self._saved()

    def stop_requested(self) -> bool:
        """True once the stop file was seen, or this process heard a signal.

        Looks at the disk at most every half second.
        """
        now_s = time.monotonic()
        if not self._stop and now_s - self._last_look_s >= STOP_POLL_S:
            self._last_look_s = now_s
            self._stop = self._stop_file.exists()
        return self._stop or self._stop_wanted()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars on rank 0."""
        self._record(lambda journal: journal.metrics(step, values), step)

    def event(self, name: str, step: int, **fields: object) -> None:
        """Record something that happened, on rank 0."""
        self._record(lambda journal: journal.event(name, step, **fields), step)

    def picture(self, key: str, step: int, image_HW3: NDArray[np.uint8]) -> None:
        """Record an RGB picture on rank 0."""
        self._record(lambda journal: journal.picture(key, step, image_HW3), step)

    def table(self, key: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Record a small table on rank 0."""
        self._record(lambda journal: journal.table(key, step, columns, rows), step)

    def close(self) -> None:
        """Record how long each phase took, close the journal, and tell who watches that this rank is done."""
        if self._journal:
            seconds = {name: round(total_s, 3) for name, total_s in self.phase_s.items()}
            with suppress(OSError):  # whatever ended the attempt is on its way already
                if newest_token(self._run_dir) <= token_of(self._attempt):
                    self._journal.event("phases", self._last_step, seconds=seconds)
            self._journal.close()
        if self._pulse:
            self._pulse.close()

    def _record(self, write: Callable[[Journal], None], step: int) -> None:
        if self._journal:
            refuse_superseded(self._run_dir, self._attempt)
            self._last_step = step
            with clear_errors(self._run_dir / FOLDER):
                write(self._journal)


@contextmanager
def clear_errors(folder: Path) -> Iterator[None]:
    """Raises WorldStateError for a disk that refuses a record, or a log, in that folder of a run."""
    try:
        yield
    except OSError as error:
        raise WorldStateError(
            f"cannot record in {folder}: {error.strerror or error}; make room, then run "
            "the same command again to go on from the newest whole checkpoint"
        ) from error


def stop_file(run_dir: Path, attempt: str) -> Path:
    """The file whose existence asks an attempt to stop at the end of its step."""
    return run_dir / "log" / f"stop-{attempt}"


def request_stop(run_dir: Path, attempt: str) -> None:
    """Ask every rank of the attempt to stop, after a checkpoint, at the end of its step."""
    path = stop_file(run_dir, attempt)
    with clear_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def log_file(run_dir: Path, attempt: str) -> Path:
    """Where rank 0 of an attempt writes its log lines, for the driver to show."""
    return run_dir / "log" / f"{attempt}.log"


def log_to_file(path: Path | None) -> None:
    """Send the pipeline's log lines to `path`; with None, keep all but warnings back."""
    logger = logging.getLogger("pipeline")
    logger.propagate = False
    handler: logging.Handler = logging.StreamHandler()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    for earlier in logger.handlers[:]:
        logger.removeHandler(earlier)
        earlier.close()
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if path is None else logging.INFO)
