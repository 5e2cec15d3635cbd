"""Ships a run's journal to MLflow from the driver, behind training's back.

It guarantees: no call here waits for a server longer than its caller allows, and none raises for
one; while training runs, only steps that a committed checkpoint holds are shipped, so a step that is
rolled back never reaches MLflow; each (metric, step) arrives once, whatever dies in between, since
after every failure and at every rerun MLflow is asked what it holds before anything is sent.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Collection
from pathlib import Path

from pipeline.errors import one_line, without_credentials
from pipeline.tracking.journal import FOLDER, read_journal
from pipeline.tracking.mlflow_shipment import Shipment, due, points_of
from pipeline.tracking.mlflow_store import MlflowStore, RunDescription, Status
from pipeline.tracking.pending import forget_pending, load_pending, save_pending
from pipeline.tracking.server import tracking_uri
from pipeline.tracking.system_metrics import SystemSampler

logger = logging.getLogger(__name__)

SHIP_EVERY_S = 3.0
LONGEST_PAUSE_S = 30.0
"""Between two tries while the server is out of reach."""


class MlflowRun:
    """One MLflow run, filled from the journal by a thread; made by `open`, ended by `finish`."""

    def __init__(self, description: RunDescription, ship_every_s: float = SHIP_EVERY_S) -> None:
        uri = tracking_uri(description.runs_dir)
        self.tracking_uri = without_credentials(uri)
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self._description = description
        self._ship_every_s = ship_every_s
        self._store: MlflowStore | None = None
        self._sampler = SystemSampler(description.runs_dir)
        self._shipment: Shipment | None = None  # None: MLflow must be asked what it holds
        self._known: Collection[
            tuple[str, int]
        ] = ()  # there when last asked: for the line on what is pending
        self._first_sample_step: int | None = None  # of this job's first system sample, for all of its time
        self._queue: list[tuple[Path, str]] = []
        self._lock = threading.Lock()
        self._wake, self._opened, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._described = False
        self._status: Status | None = None
        self._deadline_s = math.inf
        self._reading_s = 0.0
        self._failures = 0
        self._last_error = ""
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)

    @classmethod
    def open(
        cls, description: RunDescription, wait_s: float = 15.0, ship_every_s: float = SHIP_EVERY_S
    ) -> MlflowRun:
        """The run of that name, made or continued; waits at most `wait_s` for an answer or a refusal.

        Without an answer the run has no id yet, training may begin, and the thread goes on trying.
        """
        run = cls(description, ship_every_s)
        run._thread.start()
        if not run._opened.wait(wait_s):
            logger.warning(
                "[event] MLflow at %s has not answered for %.0fs; training goes on", run.tracking_uri, wait_s
            )
        return run

    @property
    def page(self) -> str:
        """Where a person finds the run: its page on the server, or the database."""
        if self.tracking_uri.startswith("http") and self.run_id is not None:
            return f"{self.tracking_uri.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return self.tracking_uri

    def set_note(self, note: str) -> None:
        """Replace the text on the run's page, as soon as the server takes it."""
        with self._lock:
            self._description = dataclasses.replace(self._description, note=note)
            self._described = False

    def add_artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file, or a folder's contents, as soon as the server takes it."""
        with self._lock:
            self._queue.append((path, folder))

    def finish(self, status: Status, timeout_s: float = 60.0) -> str | None:
        """End the run within `timeout_s`; None, or one line about what MLflow does not hold yet.

        FINISHED ships every step; otherwise the steps after the last commit stay out, as the next
        attempt takes them again.
        """
        self._status = status
        self._deadline_s = time.monotonic() + timeout_s
        self._wake.set()
        if self._ended.wait(timeout_s):
            forget_pending(self._description.run_dir)
            return None
        with self._lock:
            save_pending(self._description, status, self._queue)
        records = read_journal(self._description.run_dir)
        points = {(p.key, p.step) for p in points_of(due(records, status))}
        return (
            f"MLflow at {self.tracking_uri} is out of reach ({self._last_error or 'no answer'}): "
            f"{len(points.difference(self._known))} of {len(points)} metric points, and the run's end, are "
            f"pending in {self._description.run_dir / FOLDER}; type the same with --name "
            f"{self._description.run_name} again to ship them"
        )

    def _work(self) -> None:
        while not self._ended.is_set():
            self._sampler.sample()
            try:
                self._ship()
                if self._failures:
                    logger.info("[event] MLflow at %s answers again", self.tracking_uri)
                self._failures = 0
            except Exception as error:  # noqa: BLE001 - whatever MLflow does, training must not notice
                self._note_failure(error)
                if time.monotonic() > self._deadline_s:
                    return
            self._pause()

    def _pause(self) -> None:
        """Wait for the next turn, so long that reading a long journal stays below a twentieth of a core.

        While the run is ending, only a moment between two tries.
        """
        if self._ended.is_set():
            return
        if self._status is not None:
            time.sleep(0.5 if self._failures else 0.0)
            return
        pause_s = max(self._ship_every_s * 2 ** min(self._failures, 5), 20 * self._reading_s)
        self._wake.wait(min(pause_s, LONGEST_PAUSE_S))

    def _note_failure(self, error: Exception) -> None:
        self._shipment = None  # what was under way may have landed: ask before sending anything again
        self._last_error = one_line_of(error)
        if self._failures == 0:
            logger.warning(
                "[event] MLflow at %s is out of reach (%s); training goes on, the journal keeps everything",
                self.tracking_uri, self._last_error,
            )  # fmt: skip
        self._failures += 1
        self._opened.set()

    def _ship(self) -> None:
        """One turn: everything that is due and not there yet; raises whatever MLflow raises."""
        status = self._status  # read once: what arrives during this turn waits for the next
        store = self._store = self._store or MlflowStore(self._description.runs_dir)
        if self.run_id is None:
            self.run_id, self.experiment_id = store.open_run(self._description)
        self._describe(store, self.run_id)
        if self._shipment is None:
            self._shipment = Shipment(store, self.run_id, self._description.run_dir)
            self._known = self._shipment.points
        shipment = self._shipment
        if self._first_sample_step is None:
            self._first_sample_step = shipment.next_sample()
        self._opened.set()
        began_s = time.thread_time()
        records = due(read_journal(self._description.run_dir), status)
        self._reading_s = time.thread_time() - began_s
        shipment.send_points(points_of(records, shipment.points))
        shipment.send_points(self._sampler.waiting(self._first_sample_step))
        self._sampler.clear()
        shipment.send_pictures(records)
        shipment.send_tables(records)
        self._ship_artifacts(store, self.run_id)
        if status is not None:
            journal = self._description.run_dir / FOLDER
            if journal.is_dir():
                store.send_file(self.run_id, journal, FOLDER)
            store.end_run(self.run_id, status)
            self._ended.set()

    def _describe(self, store: MlflowStore, run_id: str) -> None:
        with self._lock:
            description, described = self._description, self._described
            self._described = True
        if described:
            return
        try:
            changed = store.describe(run_id, description)
        except Exception:
            self._described = False
            raise
        for line in changed:
            logger.info("[event] param %s (MLflow keeps the first value; config.json has the new one)", line)

    def _ship_artifacts(self, store: MlflowStore, run_id: str) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    return
                path, folder = self._queue[0]
            if path.exists():
                store.send_file(run_id, path, folder)
            with self._lock:
                self._queue.pop(0)


def ship_pending(run_dir: Path, timeout_s: float = 60.0) -> str | None:
    """Ship what the end of an earlier job could not; None where nothing is pending any more, else a line.

    For a run that is finished and is started again: only MLflow is left to do.
    """
    pending = load_pending(run_dir)
    if pending is None:
        return None
    run = MlflowRun.open(pending.description)
    for path, folder in pending.artifacts:
        run.add_artifact(path, folder)
    return run.finish(pending.status, timeout_s)


def one_line_of(error: Exception) -> str:
    """An error from MLflow as part of a log line: short, on one line, without credentials."""
    return without_credentials(one_line(error))[:200] or type(error).__name__
