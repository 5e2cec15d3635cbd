"""The journal: everything that a run records, as JSON lines on disk, before anything else sees it.

Workers write it, so no network is between a step and its record; MLflow and the report are filled
from it by whoever has time. Each attempt of a run (a fresh start, a restart after a failure, a rerun
of the same name) appends to a file of its own, `<run_dir>/journal/0003-<attempt>.jsonl`.

It guarantees that a line which was written survives the death of its process, that one which was
torn by it is ignored, that everything before a `commit` event survives the death of the machine, and
that a reader sees each step once: when an attempt begins with the event `start` at step S, what
earlier attempts recorded after S never happened, and what it records at S again (the evaluation that
was cut off) replaces what they have of it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.disk import flush

logger = logging.getLogger(__name__)

FOLDER = "journal"
START = "start"
"""Event of an attempt's beginning; its step is the one that was restored, 0 for a fresh run."""
COMMIT = "commit"
"""Event of a durable checkpoint: what was recorded up to its step is final unless it is damaged."""


@dataclass(frozen=True)
class Metrics:
    """Scalars at a global optimizer step."""

    step: int
    values: Mapping[str, float]
    time_s: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Event:
    """Something that happened; `fields` are JSON values."""

    name: str
    step: int
    fields: Mapping[str, Any] = field(default_factory=dict)
    time_s: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Picture:
    """A PNG at `path`, relative to the run's folder; one key at several steps is a series."""

    key: str
    step: int
    path: str
    time_s: float = field(default_factory=time.time)


@dataclass(frozen=True)
class Table:
    """A small table of JSON values."""

    key: str
    step: int
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    time_s: float = field(default_factory=time.time)


Record = Metrics | Event | Picture | Table

_KINDS: Mapping[str, type[Metrics | Picture | Table]] = {
    "metrics": Metrics,
    "picture": Picture,
    "table": Table,
}
_EVENT_KEYS = frozenset({"kind", "name", "step", "time_s"})


class Journal:
    """The journal of one attempt, open for appending; safe to use from several threads.

    Making it creates a file that no other attempt writes to. Raises OSError where the disk refuses.
    """

    def __init__(self, run_dir: Path, attempt: str) -> None:
        self.run_dir = run_dir
        self.attempt = attempt
        folder = run_dir / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        last = max((_number(path) for path in folder.glob("*.jsonl")), default=0)
        self.path = folder / f"{last + 1:04d}-{attempt}.jsonl"
        # Unbuffered: what a full disk refused must not be tried again when the file is closed.
        self._file = self.path.open("xb", buffering=0)
        flush(folder)  # a name that a power cut takes back takes all lines with it
        self._lock = threading.Lock()
        self._pictures: deque[Path] = deque()  # that may not be on the disk yet

    def append(self, record: Record) -> None:
        """Write one record; a commit event returns only when it is on the disk. Raises OSError."""
        line = json.dumps(_to_json(record), separators=(",", ":")).encode() + b"\n"
        with self._lock:
            begin = self._file.tell()
            try:
                left = memoryview(line)
                while left.nbytes:
                    left = left[self._file.write(left) :]
            except OSError:
                self._file.seek(self._file.truncate(begin))  # half a line of a full disk
                raise
            if isinstance(record, Event) and record.name == COMMIT:
                os.fsync(self._file.fileno())

    def flush(self) -> None:
        """Bring all that was recorded to the disk. Raises OSError."""
        while self._pictures:
            with suppress(FileNotFoundError):  # a person cleared it away
                flush(self._pictures.popleft())
        with self._lock:
            os.fsync(self._file.fileno())

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars."""
        self.append(Metrics(step, {key: float(value) for key, value in values.items()}))

    def event(self, name: str, step: int, **fields: object) -> None:
        """Record something that happened."""
        self.append(Event(name, step, fields))

    def table(self, key: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Record a small table."""
        self.append(Table(key, step, list(columns), [list(row) for row in rows]))

    def picture(self, key: str, step: int, image_HW3: NDArray[np.uint8]) -> None:
        """Write an RGB picture as PNG below `<run_dir>/pictures`, then record it."""
        written, png = cv2.imencode(".png", cv2.cvtColor(image_HW3, cv2.COLOR_RGB2BGR))
        assert written, (key, image_HW3.shape, image_HW3.dtype)
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", key)
        path = Path("pictures") / name / f"step_{step:08d}-{self.attempt}.png"
        (self.run_dir / path).parent.mkdir(parents=True, exist_ok=True)
        (self.run_dir / path).write_bytes(png.tobytes())
        self._pictures.append(self.run_dir / path)
        self.append(Picture(key, step, path.as_posix()))

    def close(self) -> None:
        """Close the file; nothing can be recorded afterwards."""
        with self._lock:
            self._file.close()


def read_journal(run_dir: Path) -> list[Record]:
    """All records that count, attempt after attempt, each in the order of writing; [] without a journal.

    Metrics, pictures, tables and commits that a later attempt rolled back are left out. Other events
    stay, since they did happen. Lines that cannot be read are skipped: the last one of an attempt
    that was killed is expected to be torn, any other is logged as a warning.
    """
    kept: list[Record] = []
    for _, records in read_attempts(run_dir):
        for record in records:
            if isinstance(record, Event) and record.name == START:
                kept = [old for old in kept if not _rolled_back(old, record.step)]
            kept.append(record)
    return _newest_of_each(kept)


def read_attempts(run_dir: Path) -> list[tuple[str, list[Record]]]:
    """Each attempt's name and all that it recorded, what was rolled back too; drivers have files as well."""
    paths = sorted((run_dir / FOLDER).glob("*.jsonl"), key=lambda path: (_number(path), path.name))
    return [(path.stem.partition("-")[2], _read_lines(path)) for path in paths]


def committed_step(records: Sequence[Record]) -> int:
    """The newest step that a durable checkpoint holds; 0 before the first.

    Each start says what was whole then: one at a smaller step means that what was committed, or
    restored, after that step turned out to be damaged.
    """
    step = 0
    for record in records:
        if isinstance(record, Event) and record.name == START:
            step = record.step
        elif isinstance(record, Event) and record.name == COMMIT:
            step = max(step, record.step)
    return step


def _rolled_back(record: Record, resumed: int) -> bool:
    happened = isinstance(record, Event) and record.name != COMMIT
    return record.step > resumed and not happened


def _newest_of_each(records: list[Record]) -> list[Record]:
    """The records without what was recorded again at a step from which an attempt began."""
    resumed = {record.step for record in records if isinstance(record, Event) and record.name == START}
    seen: set[tuple[str, str, int]] = set()
    kept: list[Record] = []
    for record in reversed(records):
        if record.step not in resumed or isinstance(record, Event):
            kept.append(record)
        elif isinstance(record, Metrics):
            values = {k: v for k, v in record.values.items() if ("metrics", k, record.step) not in seen}
            seen.update(("metrics", key, record.step) for key in values)
            if values:
                kept.append(replace(record, values=values))
        elif (name := (type(record).__name__, record.key, record.step)) not in seen:
            seen.add(name)
            kept.append(record)
    return kept[::-1]


def _number(path: Path) -> int:
    head = path.name.partition("-")[0]
    return int(head) if head.isdigit() else 0


def _read_lines(path: Path) -> list[Record]:
    *lines, torn = path.read_bytes().split(b"\n")
    if torn:
        logger.debug("%s ends in a torn line of %d bytes", path, len(torn))
    records: list[Record] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(_from_json(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("%s line %d cannot be read and is left out (%s)", path, number, error)
    return records


def _to_json(record: Record) -> dict[str, Any]:
    if isinstance(record, Event):
        assert not _EVENT_KEYS & record.fields.keys(), record
        head = {"kind": "event", "name": record.name, "step": record.step, "time_s": record.time_s}
        return head | dict(record.fields)
    kind = next(name for name, cls in _KINDS.items() if isinstance(record, cls))
    return {"kind": kind} | vars(record)


def _from_json(line: Mapping[str, Any]) -> Record:
    if line["kind"] == "event":
        fields = {key: value for key, value in line.items() if key not in _EVENT_KEYS}
        return Event(str(line["name"]), int(line["step"]), fields, float(line["time_s"]))
    return _KINDS[line["kind"]](**{key: value for key, value in line.items() if key != "kind"})
