"""What a data set on disk says about itself: the manifest, and the index beside each shard.

The manifest lists every shard with its count, bytes and hashes, and carries the class table; its id is
the hash of all of that, so one string names the data set. An index line says where in the tar a
sample's two members lie, their codec and their crc32, so any sample is one exact read. Whatever
contradicts itself is refused here, before a byte of a picture is touched. docs/data-format.md has the
format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.labels import ClassTable
from pipeline.data.store import Store, open_store, safe_name
from pipeline.errors import DatasetError, ShardError

FORMAT = "ccs-shards/1"
MANIFEST_NAME = "manifest.json"
CODECS = ("png", "jpeg")
"""How an image may be encoded; labels are always PNG."""
_AGAIN = "copy the data set again or pack again"


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside a shard: `offset` is the first byte of its data in the tar."""

    codec: str
    offset: int
    bytes: int
    crc32: int


@dataclass(frozen=True, slots=True)
class SampleEntry:
    """One sample of a shard's index."""

    key: str
    height: int
    width: int
    image: Member
    label: Member


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One shard of the manifest; `name` is relative to the root."""

    name: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str


@dataclass(frozen=True)
class Split:
    """The shards of one split, in order."""

    name: str
    shards: tuple[ShardEntry, ...]

    @property
    def samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Samples of each shard, int64."""
        return np.array([shard.samples for shard in self.shards], np.int64)


@dataclass(frozen=True)
class Manifest:
    """A whole data set; `id` is the sha256 of everything else."""

    id: str
    classes: ClassTable
    splits: Mapping[str, Split]


def make_manifest(classes: ClassTable, splits: Mapping[str, Split]) -> Manifest:
    """The manifest with its id computed."""
    return Manifest(_content_id(_content(classes, splits)), classes, splits)


def manifest_text(manifest: Manifest) -> str:
    """The text of manifest.json."""
    content = _content(manifest.classes, manifest.splits)
    return json.dumps(content | {"id": manifest.id}, indent=1, ensure_ascii=False) + "\n"


def load_manifest(root: str) -> Manifest:
    """The checked manifest of the data set at `root`; raises ShardError, one line."""
    store = open_store(root)
    where = f"{root}/{MANIFEST_NAME}"
    if not store.exists(MANIFEST_NAME):
        raise ShardError(
            f"{root} holds no {MANIFEST_NAME}, so it is no packed data set, or packing did not finish; "
            f"type python jobs/pack_cityscapes.py --root TREE --out {root}"
        )
    try:
        content = _object(json.loads(store.read_all(MANIFEST_NAME)), where)
    except ValueError as error:
        raise ShardError(f"{where} is not JSON ({error}); {_AGAIN}") from error
    if content.get("format") != FORMAT:
        raise ShardError(f"{where} has format {content.get('format')!r}; this version reads {FORMAT}")
    recorded = content.pop("id", None)
    if recorded != _content_id(content):
        raise ShardError(f"{where} was changed: its id {recorded!r} is not the hash of its content; {_AGAIN}")
    try:
        classes = ClassTable.from_dict(_object(content["classes"], where))
    except (DatasetError, KeyError) as error:
        raise ShardError(f"{where}: {error}") from error
    splits = {
        name: _split(name, _object(split, where), where)
        for name, split in _object(content.get("splits"), where).items()
    }
    return Manifest(str(recorded), classes, splits)


def index_name(shard_name: str) -> str:
    """The name of the index beside a shard."""
    return shard_name.removesuffix(".tar") + ".index.jsonl"


def index_text(entries: tuple[SampleEntry, ...]) -> str:
    """The text of an index: one line a sample."""
    return "".join(_canonical(asdict(entry)) + "\n" for entry in entries)


def load_index(store: Store, shard: ShardEntry) -> tuple[SampleEntry, ...]:
    """The checked index of a shard; raises ShardError where it is not the one the manifest means."""
    name = index_name(shard.name)
    where = f"{store.root}/{name}"
    data = store.read_all(name)
    if sha256_hex(data) != shard.index_sha256:
        raise ShardError(f"{where} is not the index that the manifest lists (sha256 differs); {_AGAIN}")
    try:
        entries = tuple(_sample(json.loads(line), shard, where) for line in data.splitlines())
    except ValueError as error:
        raise ShardError(f"{where} is not JSON lines ({error}); {_AGAIN}") from error
    if len(entries) != shard.samples:
        raise ShardError(f"{where} has {len(entries)} samples, the manifest says {shard.samples}; {_AGAIN}")
    if len({entry.key for entry in entries}) != len(entries):
        raise ShardError(f"{where} lists a key twice; {_AGAIN}")
    return entries


def sha256_hex(data: bytes) -> str:
    """sha256 as the manifest writes it: 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def _content(classes: ClassTable, splits: Mapping[str, Split]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "classes": classes.to_dict(),
        "splits": {
            name: {
                "samples": split.samples,
                "bytes": split.bytes,
                "shards": [asdict(shard) for shard in split.shards],
            }
            for name, split in splits.items()
        },
    }


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _content_id(content: Mapping[str, Any]) -> str:
    return sha256_hex(_canonical(content).encode())


def _split(name: str, content: Mapping[str, Any], where: str) -> Split:
    shards = content.get("shards")
    if not isinstance(shards, list):
        raise ShardError(f"{where}: split {name!r} lists no shards; {_AGAIN}")
    split = Split(name, tuple(_shard(_object(shard, where), where) for shard in shards))
    for field, counted in (("samples", split.samples), ("bytes", split.bytes)):
        if content.get(field) != counted:
            raise ShardError(
                f"{where}: split {name!r} claims {content.get(field)} {field}, "
                f"its shards have {counted}; {_AGAIN}"
            )
    if len({shard.name for shard in split.shards}) != len(split.shards):
        raise ShardError(f"{where}: split {name!r} lists a shard twice; {_AGAIN}")
    return split


def _shard(content: Mapping[str, Any], where: str) -> ShardEntry:
    name = _text(content, "name", where)
    if not safe_name(name) or not name.endswith(".tar"):
        raise ShardError(f"{where}: shard name {name!r} is not a plain relative name of a .tar; refused")
    return ShardEntry(
        name,
        _number(content, "samples", where),
        _number(content, "bytes", where),
        _text(content, "sha256", where),
        _text(content, "index_sha256", where),
    )


def _sample(content: object, shard: ShardEntry, where: str) -> SampleEntry:
    line = _object(content, where)
    image, label = (_member(_object(line.get(kind), where), shard, where) for kind in ("image", "label"))
    if image.codec not in CODECS or label.codec != "png":
        raise ShardError(
            f"{where}: codecs {image.codec!r} and {label.codec!r}; images may be {', '.join(CODECS)}, "
            "labels png"
        )
    height, width = _number(line, "height", where), _number(line, "width", where)
    if height == 0 or width == 0:
        raise ShardError(f"{where}: a picture of {height}x{width} pixels; {_AGAIN}")
    return SampleEntry(_text(line, "key", where), height, width, image, label)


def _member(content: Mapping[str, Any], shard: ShardEntry, where: str) -> Member:
    member = Member(
        _text(content, "codec", where),
        _number(content, "offset", where),
        _number(content, "bytes", where),
        _number(content, "crc32", where),
    )
    if member.bytes == 0 or member.offset + member.bytes > shard.bytes:
        raise ShardError(
            f"{where}: a member at {member.offset}+{member.bytes} lies outside {shard.name} "
            f"of {shard.bytes} bytes; {_AGAIN}"
        )
    return member


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ShardError(f"{where}: an object is expected where {str(value)[:40]!r} stands; {_AGAIN}")
    return value


def _text(content: Mapping[str, Any], field: str, where: str) -> str:
    value = content.get(field)
    if not isinstance(value, str) or not value:
        raise ShardError(f"{where}: {field!r} is {value!r}, not a text; {_AGAIN}")
    return value


def _number(content: Mapping[str, Any], field: str, where: str) -> int:
    value = content.get(field)
    if type(value) is not int or value < 0:
        raise ShardError(f"{where}: {field!r} is {value!r}, not a count; {_AGAIN}")
    return value
