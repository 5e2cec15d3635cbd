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

from mlflow.entities import Metric

from pipeline.errors import one_line, without_credentials
from pipeline.tracking.confusion_picture import confusion_png
from pipeline.tracking.incidents import COLUMNS, read_account
from pipeline.tracking.journal import (
    FOLDER,
    Event,
    Metrics,
    Picture,
    Record,
    Table,
    committed_step,
    read_journal,
)
from pipeline.tracking.mlflow_store import (
    MlflowStore,
    RunDescription,
    Sent,
    Status,
    batches,
)
from pipeline.tracking.pending import forget_pending, load_pending, save_pending
from pipeline.tracking.server import tracking_uri
from pipeline.tracking.system_metrics import SAMPLE_PREFIX, SystemSampler

logger = logging.getLogger(__name__)

SHIP_EVERY_S = 3.0
LONGEST_PAUSE_S = 30.0
"""Between two tries while the server is out of reach."""
CONFUSION_SUFFIX = "confusion"
"""Tables whose key ends in this are square and also shown as a picture."""


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
        self._sent: Sent | None = None  # None: MLflow must be asked what it holds
        self._known = Sent()  # what was last known to be there, for the line about what is pending
        self._first_sample_step: int | None = None  # of this job's first system sample, for all of its time
        self._tables: dict[str, tuple[int, float]] = {}
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
        points = {(p.key, p.step) for p in _points(_due(records, status))}
        return (
            f"MLflow at {self.tracking_uri} is out of reach ({self._last_error or 'no answer'}): "
            f"{len(points - self._known.points)} of {len(points)} metric points, and the run's end, are "
            f"pending in {self._description.run_dir / FOLDER}; run the same command again to ship them"
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
        self._sent = None  # what was under way may have landed: ask before sending anything again
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
        if self._sent is None:
            self._sent = store.sent(self.run_id)
            self._known = self._sent
        if self._first_sample_step is None:
            self._first_sample_step = 1 + _newest_sample(self._sent)
        self._opened.set()
        began_s = time.thread_time()
        records = _due(read_journal(self._description.run_dir), status)
        self._reading_s = time.thread_time() - began_s
        self._ship_points(store, self.run_id, self._sent, _points(records, self._sent.points))
        self._ship_points(store, self.run_id, self._sent, self._sampler.waiting(self._first_sample_step))
        self._sampler.clear()
        self._ship_pictures(store, self.run_id, self._sent, records)
        self._ship_tables(store, self.run_id, records)
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

    def _ship_points(self, store: MlflowStore, run_id: str, sent: Sent, points: list[Metric]) -> None:
        for batch in batches(point for point in points if (point.key, point.step) not in sent.points):
            store.send_metrics(run_id, batch)
            sent.points.update((point.key, point.step) for point in batch)

    def _ship_pictures(self, store: MlflowStore, run_id: str, sent: Sent, records: list[Record]) -> None:
        for record in records:
            if isinstance(record, Picture) and (record.key, record.step) not in sent.pictures:
                path = self._description.run_dir / record.path
                if path.is_file():
                    store.send_picture(run_id, record.key, record.step, path)
                sent.pictures.add((record.key, record.step))

    def _ship_tables(self, store: MlflowStore, run_id: str, records: list[Record]) -> None:
        newest = {r.key: r for r in records if isinstance(r, Table)}
        changed = {k: r for k, r in newest.items() if self._tables.get(k) != (r.step, r.time_s)}
        if not changed:
            return
        tables = {f"tables/{key.replace('/', '-')}.json": (r.columns, r.rows) for key, r in changed.items()}
        events = [r for r in records if isinstance(r, Event)]
        tables["tables/events.json"] = _event_table(events)
        if incidents := read_account(self._description.run_dir).rows():
            tables["tables/incidents.json"] = COLUMNS, incidents
        store.send_tables(run_id, tables)
        for key, record in changed.items():
            if key.endswith(CONFUSION_SUFFIX):
                picture = confusion_png(record.columns, record.rows, f"{key}, step {record.step}")
                store.send_bytes(run_id, picture, f"tables/{key.replace('/', '-')}.png")
        self._tables.update({key: (r.step, r.time_s) for key, r in changed.items()})

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


def _due(records: list[Record], status: Status | None) -> list[Record]:
    """What may be shipped: all of a finished run, else what the newest commit covers."""
    if status == "FINISHED":
        return records
    limit = committed_step(records)
    return [record for record in records if record.step <= limit]


def _newest_sample(sent: Sent) -> int:
    """The number of the last system sample that MLflow holds from earlier jobs; -1 for none."""
    return max((step for key, step in sent.points if key.startswith(SAMPLE_PREFIX)), default=-1)


def _points(records: list[Record], sent: Collection[tuple[str, int]] = ()) -> list[Metric]:
    """One point a (metric, step) that is not in `sent`; of one recorded twice the later value counts."""
    newest = {
        (key, record.step): Metric(key, value, int(record.time_s * 1000), record.step)
        for record in records
        if isinstance(record, Metrics)
        for key, value in record.values.items()
        if (key, record.step) not in sent
    }
    return list(newest.values())


def _event_table(events: list[Event]) -> tuple[list[str], list[list[object]]]:
    clock = [time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time_s)) for event in events]
    rows: list[list[object]] = [
        [when, event.step, event.name, ", ".join(f"{k}={v}" for k, v in event.fields.items())]
        for when, event in zip(clock, events, strict=True)
    ]
    return ["time", "step", "event", "details"], rows
