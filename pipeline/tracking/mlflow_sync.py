"""Ships a run's journal to MLflow from the driver, behind training's back, and those of the runs below it.

It guarantees: no call here waits for a server longer than its caller allows, and none raises for
one; while training runs, only steps that a committed checkpoint holds are shipped, so a step that is
rolled back never reaches MLflow; each (metric, step) arrives once, whatever dies in between, since
after every failure and at every rerun MLflow is asked what it holds before anything is sent.

A run and the runs below it (a search and its trials) have one thread: a child is never sent before its
parent is there, and an outage of the server is one line, however many there are.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
import time
from pathlib import Path

from pipeline.errors import one_line, without_credentials
from pipeline.tracking.journal import FOLDER
from pipeline.tracking.mlflow_store import MlflowStore, RunDescription, Status
from pipeline.tracking.pending import forget_pending, load_pending, save_sent
from pipeline.tracking.run_shipper import RunShipper
from pipeline.tracking.server import tracking_uri
from pipeline.tracking.system_metrics import SystemSampler

logger = logging.getLogger(__name__)

SHIP_EVERY_S = 3.0
LONGEST_PAUSE_S = 30.0
"""Between two tries while the server is out of reach."""


class MlflowRun:
    """One MLflow run, filled from the journal by a thread; made by `open`, ended by `finish`."""

    def __init__(self, description: RunDescription, ship_every_s: float = SHIP_EVERY_S) -> None:
        self.tracking_uri = without_credentials(tracking_uri(description.runs_dir))
        self._runs_dir = description.runs_dir
        self._run = RunShipper(description, SystemSampler(description.runs_dir))
        self._children: list[RunShipper] = []  # those that are not ended
        self._ship_every_s = ship_every_s
        self._store: MlflowStore | None = None
        self._wake, self._ended = threading.Event(), threading.Event()
        self._deadline_s = math.inf
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
        if not run._run.opened.wait(wait_s):
            logger.warning(
                "[event] MLflow at %s has not answered for %.0fs; training goes on", run.tracking_uri, wait_s
            )
        return run

    @property
    def run_id(self) -> str | None:
        """Its id, once the server has answered."""
        return self._run.run_id

    @property
    def experiment_id(self) -> str | None:
        """The id of its experiment, once the server has answered."""
        return self._run.experiment_id

    @property
    def page(self) -> str:
        """Where a person finds the run: its page on the server, or the database."""
        if self.tracking_uri.startswith("http") and self.run_id is not None:
            return f"{self.tracking_uri.rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return self.tracking_uri

    def child(self, description: RunDescription) -> RunShipper:
        """The run of that folder below this one, made or continued; returns at once. Its `close` ends it.

        Until it has ended in MLflow it is noted in its folder, so that whatever kills this process leaves
        it to a later job (`send_owed`), and where nobody closes it, it was killed.
        """
        child = RunShipper(dataclasses.replace(description, parent=self._run.run_dir), noted=True)
        child.owe()
        self._children.append(child)
        return child

    def send_owed(self, run_dir: Path) -> None:
        """Send what an earlier job could not of the child of that folder, if anything."""
        pending = load_pending(run_dir)
        if pending is None:
            return
        child = RunShipper(pending.description, noted=True)
        for path, folder in pending.artifacts:
            child.add_artifact(path, folder)
        child.close(pending.status)
        self._children.append(child)

    def set_note(self, note: str) -> None:
        """Replace the text on the run's page, as soon as the server takes it."""
        self._run.set_note(note)

    def set_tags(self, tags: dict[str, str]) -> None:
        """Add tags, or replace their values, as soon as the server takes them."""
        self._run.set_tags(tags)

    def add_artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file, or a folder's contents, as soon as the server takes it."""
        self._run.add_artifact(path, folder)

    def finish(self, status: Status, timeout_s: float = 60.0) -> str | None:
        """End the run within `timeout_s`; None, or one line about what MLflow does not hold yet.

        FINISHED ships every step; otherwise the steps after the last commit stay out, as the next
        attempt takes them again.
        """
        for child in self._children:
            if child.status is None:
                child.close("KILLED")
        self._run.close(status)
        self._deadline_s = time.monotonic() + timeout_s
        self._wake.set()
        if self._ended.wait(timeout_s):
            forget_pending(self._run.run_dir)
            return None
        children = list(self._children)
        for child in children:
            child.owe()
        self._run.owe([child.run_dir for child in children])
        lacking, points = (sum(n) for n in zip(*(r.lacking() for r in [self._run, *children]), strict=True))
        ends = f"the ends of {1 + len(children)} runs" if children else "the run's end"
        return (
            f"MLflow at {self.tracking_uri} is out of reach ({self._last_error or 'no answer'}): "
            f"{lacking} of {points} metric points, and {ends}, are "
            f"pending in {self._run.run_dir / FOLDER}; type the same with --name "
            f"{self._run.name} again to ship them"
        )

    def _work(self) -> None:
        while not self._ended.is_set():
            self._run.sample()
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
        """Wait for the next turn, so long that reading long journals stays below a twentieth of a core.

        While the run is ending, only a moment between two tries.
        """
        if self._ended.is_set():
            return
        if self._run.status is not None:
            time.sleep(0.5 if self._failures else 0.0)
            return
        reading_s = self._run.reading_s + sum(child.reading_s for child in self._children)
        pause_s = max(self._ship_every_s * 2 ** min(self._failures, 5), 20 * reading_s)
        self._wake.wait(min(pause_s, LONGEST_PAUSE_S))

    def _note_failure(self, error: Exception) -> None:
        self._last_error = one_line_of(error)
        if self._failures == 0:
            logger.warning(
                "[event] MLflow at %s is out of reach (%s); training goes on, the journal keeps everything",
                self.tracking_uri, self._last_error,
            )  # fmt: skip
        self._failures += 1
        self._run.opened.set()

    def _ship(self) -> None:
        """One turn of the run and its children; raises whatever MLflow raised first.

        Where the run itself fails its children wait, since they need it and its server; where a child
        does, its siblings have their turn all the same.
        """
        ending = self._run.status is not None
        store = self._store = self._store or MlflowStore(self._runs_dir)
        if not self._run.ended.is_set():
            _ship_or_doubt(self._run, store)
        failed: Exception | None = None
        for child in list(self._children):
            try:
                _ship_or_doubt(child, store)
            except Exception as error:  # noqa: BLE001 - raised below, when the others had their turn
                failed = failed or error
            if child.ended.is_set():
                forget_pending(child.run_dir)
                if child.status != "KILLED":  # else more may come of it
                    save_sent(child.run_dir, str(child.run_id), self.tracking_uri)
                self._children.remove(child)
        if failed is not None:
            raise failed
        if ending and not self._children:
            self._ended.set()


def _ship_or_doubt(run: RunShipper, store: MlflowStore) -> None:
    try:
        run.ship(store)
    except Exception:
        run.doubt()
        raise


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
    for child in pending.children:
        run.send_owed(child)
    return run.finish(pending.status, timeout_s)


def one_line_of(error: Exception) -> str:
    """An error from MLflow as part of a log line: short, on one line, without credentials."""
    return without_credentials(one_line(error))[:200] or type(error).__name__
