"""What a run's records hold and MLflow does not, sent so that each point is there once.

It guarantees: a (metric, step) that MLflow holds is not sent again, and one that is sent twice after all,
as by a request that landed though its answer never came, is the same point to the last bit, which MLflow
stores once. A shipment begins by asking MLflow what it holds; after any failure it is thrown away.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from pathlib import Path

from mlflow.entities import Metric

from pipeline.tracking.confusion_picture import confusion_png
from pipeline.tracking.incidents import COLUMNS, read_account
from pipeline.tracking.journal import Event, Metrics, Picture, Record, Table, committed_step
from pipeline.tracking.mlflow_store import BrokenPictureError, MlflowStore, Status, batches
from pipeline.tracking.system_metrics import SAMPLE_PREFIX

logger = logging.getLogger(__name__)

CONFUSION_SUFFIX = "confusion"
"""Tables whose key ends in this are square and also shown as a picture."""


class Shipment:
    """What MLflow held of a run when it was asked, and what was sent since."""

    def __init__(self, store: MlflowStore, run_id: str, run_dir: Path) -> None:
        """Asks MLflow; raises whatever it raises, as all methods do."""
        self._store, self._run_id, self._run_dir = store, run_id, run_dir
        self._sent = store.sent(run_id)
        self._tables: dict[str, tuple[int, float]] = {}

    @property
    def points(self) -> Collection[tuple[str, int]]:
        """The (metric, step) that MLflow holds."""
        return self._sent.points

    def next_sample(self) -> int:
        """The number of the first system sample that MLflow does not hold from earlier jobs."""
        return 1 + max((step for key, step in self.points if key.startswith(SAMPLE_PREFIX)), default=-1)

    def send_points(self, points: list[Metric]) -> None:
        """Those points that MLflow does not hold."""
        for batch in batches(point for point in points if (point.key, point.step) not in self.points):
            self._store.send_metrics(self._run_id, batch)
            self._sent.points.update((point.key, point.step) for point in batch)

    def send_pictures(self, records: list[Record]) -> None:
        """Those pictures that MLflow does not hold, and whose file is there and whole."""
        for record in records:
            if isinstance(record, Picture) and (record.key, record.step) not in self._sent.pictures:
                path = self._run_dir / record.path
                try:
                    if path.is_file():
                        self._store.send_picture(self._run_id, record.key, record.step, path)
                except BrokenPictureError as error:  # it would keep all that comes after it from MLflow
                    logger.warning("[event] %s and is left out of MLflow", error)
                self._sent.pictures.add((record.key, record.step))

    def send_tables(self, records: list[Record]) -> None:
        """The newest of each table, in place of its older self, and the events where a table changed."""
        newest = {r.key: r for r in records if isinstance(r, Table)}
        changed = {k: r for k, r in newest.items() if self._tables.get(k) != (r.step, r.time_s)}
        if not changed:
            return
        tables = {f"tables/{key.replace('/', '-')}.json": (r.columns, r.rows) for key, r in changed.items()}
        events = [r for r in records if isinstance(r, Event)]
        tables["tables/events.json"] = _event_table(events)
        if incidents := read_account(self._run_dir).rows():
            tables["tables/incidents.json"] = COLUMNS, incidents
        self._store.send_tables(self._run_id, tables)
        for key, record in changed.items():
            if key.endswith(CONFUSION_SUFFIX):
                picture = confusion_png(record.columns, record.rows, f"{key}, step {record.step}")
                self._store.send_bytes(self._run_id, picture, f"tables/{key.replace('/', '-')}.png")
        self._tables.update({key: (r.step, r.time_s) for key, r in changed.items()})


def due(records: list[Record], status: Status | None) -> list[Record]:
    """What may be shipped: all of a finished run, else what the newest commit covers."""
    if status == "FINISHED":
        return records
    limit = committed_step(records)
    return [record for record in records if record.step <= limit]


def points_of(records: list[Record], sent: Collection[tuple[str, int]] = ()) -> list[Metric]:
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
