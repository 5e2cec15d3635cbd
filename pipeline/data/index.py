"""The index beside a shard: where each sample's two members lie in the tar, their codecs and crc32.

One line of JSON a sample, so any sample is one exact read. The manifest vouches for an index by its
sha256; whatever is wrong in one all the same is refused here, before a byte of a picture is touched.
docs/data-format.md has the format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.data.shard_table import ShardEntry, index_name, sha256_hex
from pipeline.data.store import Store
from pipeline.data.strict_json import (
    AGAIN,
    as_object,
    count_field,
    parse_json,
    refuse_unknown,
    shown,
    text_field,
)
from pipeline.errors import ShardError

CODECS = ("png", "jpeg")
"""How an image may be encoded; labels are always PNG."""
_SAMPLE_FIELDS = {"key", "height", "width", "image", "label"}
_MEMBER_FIELDS = {"codec", "offset", "bytes", "crc32"}


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


def index_text(entries: tuple[SampleEntry, ...]) -> str:
    """The text of an index: one line a sample."""
    lines = (json.dumps(asdict(entry), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
             for entry in entries)  # fmt: skip
    return "".join(line + "\n" for line in lines)


def load_index(store: Store, shard: ShardEntry) -> tuple[SampleEntry, ...]:
    """The checked index of a shard; raises ShardError where it is not the one the manifest means."""
    name = index_name(shard.name)
    where = f"{store.root}/{name}"
    data = store.read_all(name, shard.index_sha256)
    if sha256_hex(data) != shard.index_sha256:
        raise ShardError(f"{where} is not the index that the manifest lists (sha256 differs); {AGAIN}")
    lines = data.split(b"\n")[: shard.samples + 1]  # not more of them than are needed to refuse it
    if lines[-1] == b"":
        lines.pop()
    if len(lines) != shard.samples:
        raise ShardError(
            f"{where} has {len(data.splitlines())} samples, the manifest says {shard.samples}; {AGAIN}"
        )
    entries = tuple(
        _sample(parse_json(line, f"{where}:{number}"), shard, f"{where}:{number}")
        for number, line in enumerate(lines, start=1)
    )
    if len({entry.key for entry in entries}) != len(entries):
        raise ShardError(f"{where} lists a key twice; {AGAIN}")
    return entries


def _sample(content: object, shard: ShardEntry, where: str) -> SampleEntry:
    line = as_object(content, where)
    refuse_unknown(line, _SAMPLE_FIELDS, where)
    image, label = (_member(line.get(kind), shard, f"{where}: {kind}") for kind in ("image", "label"))
    if image.codec not in CODECS or label.codec != "png":
        raise ShardError(
            f"{where}: codecs {shown(image.codec)} and {shown(label.codec)}; images may be "
            f"{', '.join(CODECS)}, labels png"
        )
    height, width = count_field(line, "height", where), count_field(line, "width", where)
    if height == 0 or width == 0:
        raise ShardError(f"{where}: a picture of {height}x{width} pixels; {AGAIN}")
    return SampleEntry(_key(line, where), height, width, image, label)


def _member(content: object, shard: ShardEntry, where: str) -> Member:
    fields = as_object(content, where)
    refuse_unknown(fields, _MEMBER_FIELDS, where)
    member = Member(
        text_field(fields, "codec", where),
        count_field(fields, "offset", where),
        count_field(fields, "bytes", where),
        count_field(fields, "crc32", where, most=2**32 - 1),
    )
    if member.bytes == 0 or member.offset + member.bytes > shard.bytes:
        raise ShardError(
            f"{where}: a member at {member.offset}+{member.bytes} lies outside {shard.name} "
            f"of {shard.bytes} bytes; {AGAIN}"
        )
    return member


def _key(content: Mapping[str, Any], where: str) -> str:
    """A key that may stand in a log line, and under a folder as a file's name."""
    key = text_field(content, "key", where)
    if not key.isprintable() or "\\" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ShardError(f"{where}: key {shown(key)} is no plain relative name; refused")
    return key
