"""What a loader and one of its workers tell each other: lines of JSON, never pickles.

To the worker: its Setup; then tasks as lists, an empty one after those that are handed over at once, and
shards to stage as objects. Back: replies as lists, and objects for "ready", once, and for records of the
worker's log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from pipeline import errors
from pipeline.config import AugmentConfig, DataConfig, StoreConfig
from pipeline.data.crop_writer import Cost
from pipeline.data.index import Member, SampleEntry
from pipeline.data.reader import SampleRef
from pipeline.data.shard_table import ShardEntry
from pipeline.data.slots import SlotLayout
from pipeline.data.store.address import is_address
from pipeline.errors import PipelineError

# Ten times as fast as dataclasses.astuple, which the thread that trains would feel.
_shard_fields = attrgetter("name", "samples", "bytes", "sha256", "index_sha256")
_entry_fields = attrgetter("key", "height", "width")
_member_fields = attrgetter("codec", "offset", "bytes", "crc32")
_encode = json.JSONEncoder(separators=(",", ":")).encode  # json.dumps would make one a line


@dataclass(frozen=True)
class Setup:
    """What a worker must know before its first task."""

    root: str
    num_classes: int
    data: DataConfig
    seed: int
    batch: int

    @property
    def layout(self) -> SlotLayout:
        """What a slot holds."""
        return SlotLayout(self.batch, self.data.crop_height, self.data.crop_width)

    @property
    def timeout_s(self) -> float:
        """Longest that a sample may take; a server's own error comes first, as it says more."""
        store = self.data.store
        # A read that proves bad is done once more.
        tries_s = 2 * store.attempts * store.timeout_s if is_address(self.root) else 0.0
        return self.data.worker_timeout_s + tries_s

    def line(self) -> bytes:
        """The setup as a line."""
        return _line(asdict(self))

    @classmethod
    def from_line(cls, line: bytes) -> Setup:
        """The setup that `line()` wrote."""
        values = json.loads(line)
        data = values.pop("data")
        augment, store = AugmentConfig(**data.pop("augment")), StoreConfig(**data.pop("store"))
        return cls(data=DataConfig(augment=augment, store=store, **data), **values)


class Task(NamedTuple):
    """A sample to write into a row of a slot; `number` tells tasks apart."""

    number: int
    slot: int
    row: int
    position: int
    ref: SampleRef

    def line(self) -> bytes:
        """The task as a line."""
        shard, entry = self.ref.shard, self.ref.entry
        members = _member_fields(entry.image), _member_fields(entry.label)
        return _line([*self[:4], _shard_fields(shard), _entry_fields(entry), *members])

    @classmethod
    def from_list(cls, values: list[Any]) -> Task:
        """The task whose line held these values."""
        number, slot, row, position, shard, (key, height, width), image, label = values
        entry = SampleEntry(key, height, width, Member(*image), Member(*label))
        return cls(number, slot, row, position, SampleRef(ShardEntry(*shard), entry))


class Reply(NamedTuple):
    """How a task ended: what it cost, or why there are no pixels."""

    number: int
    cost: Cost
    error: PipelineError | None = None

    def line(self) -> bytes:
        """The reply as a line."""
        values: list[object] = [self.number, round(self.cost.store_s, 6), round(self.cost.decode_s, 6)]
        if self.error is not None:
            values += [type(self.error).__name__, str(self.error)]
        return _line(values)

    @classmethod
    def from_list(cls, values: list[Any]) -> Reply:
        """The reply whose line held these values; its error is of the type that was raised."""
        number, store_s, decode_s, *error = values
        return cls(number, Cost(store_s, decode_s), _error(*error) if error else None)


ANSWER_LINE = b"[]\n"
"""Ends what is handed over at once: the replies to it may come together."""


def stage_line(shard: ShardEntry) -> bytes:
    """A line that asks for a shard to be brought to this machine."""
    return _line({"stage": _shard_fields(shard)})


def staged_shard(message: Mapping[str, Any]) -> ShardEntry:
    """The shard that such a line named."""
    return ShardEntry(*message["stage"])


def ready_line() -> bytes:
    """A worker's first words."""
    return _line({"ready": True})


def log_line(level: int, name: str, text: str) -> bytes:
    """A record of a worker's log."""
    return _line({"log": [level, name, text]})


def _error(kind: str, text: str) -> PipelineError:
    found = getattr(errors, kind, PipelineError)
    return found(text) if issubclass(found, PipelineError) else PipelineError(text)


def _line(values: object) -> bytes:
    return _encode(values).encode() + b"\n"
