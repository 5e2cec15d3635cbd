"""What one run owes MLflow, and the turn that sends it, on whichever thread takes turns.

It may be filled from any thread. A turn raises whatever MLflow raises and may take as long; `mlflow_sync`
has the thread, the patience and the log lines.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pipeline.tracking.journal import FOLDER, read_journal
from pipeline.tracking.mlflow_shipment import Shipment, due, points_of
from pipeline.tracking.mlflow_store import MlflowStore, RunDescription, Status
from pipeline.tracking.pending import save_pending
from pipeline.tracking.system_metrics import SystemSampler

logger = logging.getLogger(__name__)


class RunShipper:
    """One MLflow run, filled from the journal of its folder."""

    def __init__(
        self, description: RunDescription, sampler: SystemSampler | None = None, *, noted: bool = False
    ) -> None:
        """Where it is `noted`, its folder says what it owes as soon as it is closed, not only when asked."""
        self.run_id: str | None = None
        self.experiment_id: str | None = None
        self.opened, self.ended = threading.Event(), threading.Event()
        self.reading_s = 0.0
        """Processor time that reading the journal took in the last turn."""
        self._description, self._described = description, False
        self._sampler, self._noted = sampler, noted
        self._shipment: Shipment | None = None  # None: MLflow must be asked what it holds
        self._known: Collection[
            tuple[str, int]
        ] = ()  # there when last asked: for the line on what is pending
        self._first_sample_step: int | None = None  # of this job's first system sample, for all of its time
        self._queue: list[tuple[Path, str]] = []
        self._uploaded: list[tuple[Path, str]] = []
        self._status: Status | None = None
        self._lock = threading.Lock()

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return self._description.run_dir

    @property
    def name(self) -> str:
        """The run's name."""
        return self._description.run_name

    @property
    def status(self) -> Status | None:
        """How the run ended; None while it goes on."""
        return self._status

    def set_note(self, note: str) -> None:
        """Replace the text on the run's page, as soon as the server takes it."""
        with self._lock:
            self._description = dataclasses.replace(self._description, note=note)
            self._described = False

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add tags, or replace their values, as soon as the server takes them."""
        with self._lock:
            tags = {**self._description.tags, **tags}
            self._described &= tags == self._description.tags
            self._description = dataclasses.replace(self._description, tags=tags)

    def add_artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file, or a folder's contents, as soon as the server takes it."""
        with self._lock:
            if (path, folder) not in self._queue[1:]:  # the first may be under way, with what it was
                self._queue.append((path, folder))

    def close(self, status: Status) -> None:
        """Nothing more comes: the next turns send the rest and end the run."""
        self._status = status
        if self._noted:
            self.owe()

    def owe(self, children: Sequence[Path] = ()) -> None:
        """Note on disk what is still to be sent, for a later job to send; `children` are folders of runs.

        A run that nobody closed by then was killed.
        """
        with self._lock:
            if children or not self.ended.is_set():
                save_pending(self._description, self._status or "KILLED", self._queue, children)

    def lacking(self) -> tuple[int, int]:
        """How many metric points MLflow does not hold yet, as far as is known, of how many that are due."""
        records = read_journal(self.run_dir)
        points = {(p.key, p.step) for p in points_of(due(records, self._status))}
        return len(points.difference(self._known)), len(points)

    def sample(self) -> None:
        """Take a sample of the machine where one is due; never raises."""
        if self._sampler is not None:
            self._sampler.sample()

    def doubt(self) -> None:
        """What was under way may have landed: MLflow is asked again before anything is sent."""
        self._shipment = None

    def ship(self, store: MlflowStore) -> None:
        """One turn: everything that is due and not there yet; raises whatever MLflow raises."""
        status = self._status  # read once: what arrives during this turn waits for the next
        if self._shipment is None or self.run_id is None:
            # After a failure too: a person may have deleted the run, or the server its database.
            self._open(store)
        assert self.run_id is not None
        self._describe(store, self.run_id)
        if self._shipment is None:
            self._shipment = Shipment(store, self.run_id, self.run_dir)
            self._known = self._shipment.points
        shipment = self._shipment
        if self._first_sample_step is None:
            self._first_sample_step = shipment.next_sample()
        self.opened.set()
        began_s = time.thread_time()
        records = due(read_journal(self.run_dir), status)
        self.reading_s = time.thread_time() - began_s
        shipment.send_points(points_of(records, shipment.points))
        if self._sampler is not None:
            shipment.send_points(self._sampler.waiting(self._first_sample_step))
            self._sampler.clear()
        shipment.send_pictures(records)
        shipment.send_tables(records)
        self._ship_artifacts(store, self.run_id)
        if status is not None:
            self._end(store, self.run_id, status)

    def _open(self, store: MlflowStore) -> None:
        """Make sure of the run; a new one is sent all that the one before was."""
        before = self.run_id
        self.run_id, self.experiment_id = store.open_run(self._description)
        if before in (None, self.run_id):
            return
        logger.warning(
            "[event] MLflow has no run %s any more: all goes to a new one, %s", before, self.run_id
        )
        with self._lock:
            self._described = False
            self._queue[:0] = self._uploaded
            self._uploaded.clear()

    def _end(self, store: MlflowStore, run_id: str, status: Status) -> None:
        journal = self.run_dir / FOLDER
        if journal.is_dir():
            store.send_file(run_id, journal, FOLDER)
        store.end_run(run_id, status)
        with self._lock:  # not while it is noted
            self.ended.set()

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
                sent = self._queue.pop(0)
                if sent not in self._uploaded:
                    self._uploaded.append(sent)
