"""The manifest: every shard of a data set with its count, bytes and hashes, and the class table.

Its id is the hash of all of that, so one string names the data set. Whatever contradicts itself is
refused here, before a shard or an index is opened. A million shards open in seconds: the text is JSON,
a line a shard, and becomes columns. docs/data-format.md has the format.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import StoreConfig
from pipeline.data.labels import ClassTable
from pipeline.data.shard_table import ShardEntry, ShardTable
from pipeline.data.store import Store, open_store, safe_name
from pipeline.data.store.address import is_address
from pipeline.data.strict_json import (
    AGAIN,
    as_object,
    count_field,
    digest_field,
    parse_json,
    refuse_unknown,
    shown,
    text_field,
)
from pipeline.errors import DatasetError, ShardError

FORMAT = "ccs-shards/1"
MANIFEST_NAME = "manifest.json"
_PACKING_RECORD = "packing.jsonl"
"""What a packer leaves that did not finish."""
_FIELDS = {"format", "classes", "splits", "id"}
_SPLIT_FIELDS = {"samples", "bytes", "shards"}
_SHARD_FIELDS = {"name", "samples", "bytes", "sha256", "index_sha256"}
_SAMPLE_IN_TAR = 4 * 512
"""Bytes that a sample takes at least: two members, each a header and a block."""
_LOCAL = StoreConfig()


@dataclass(frozen=True)
class Split:
    """The shards of one split, in order."""

    name: str
    shards: ShardTable

    @cached_property
    def samples(self) -> int:
        """Samples in all shards."""
        return int(self.shards.samples.sum())

    @cached_property
    def bytes(self) -> int:
        """Bytes of all shards."""
        return int(self.shards.bytes.sum())

    @property
    def counts(self) -> NDArray[np.int64]:
        """Samples of each shard, int64."""
        return self.shards.samples


@dataclass(frozen=True)
class Manifest:
    """A whole data set; `id` is the sha256 of everything else."""

    id: str
    classes: ClassTable
    splits: Mapping[str, Split]


def make_manifest(classes: ClassTable, splits: Mapping[str, Split]) -> Manifest:
    """The manifest with its id computed."""
    return Manifest(_content_id(classes.to_dict(), splits), classes, splits)


def manifest_text(manifest: Manifest) -> str:
    """The text of manifest.json, a line a shard."""
    splits = ",".join(
        f'\n  {_canonical(name)}: {{"samples": {split.samples}, "bytes": {split.bytes}, "shards": ['
        + ",".join(map(_shard_line, split.shards))
        + "]}"
        for name, split in manifest.splits.items()
    )
    classes = json.dumps(manifest.classes.to_dict(), ensure_ascii=False)
    return (
        f'{{"format": "{FORMAT}",\n "classes": {classes},\n "splits": {{{splits}}},\n'
        f' "id": "{manifest.id}"}}\n'
    )


def load_manifest(root: str, config: StoreConfig = _LOCAL) -> Manifest:
    """The checked manifest of the data set at `root`; raises ShardError, one line."""
    with closing(open_store(root, config)) as store:
        content = _content(store)
    where = f"{root}/{MANIFEST_NAME}"
    recorded = content.get("id")
    splits = {
        name: _split(name, as_object(split, where), where)
        for name, split in as_object(content.get("splits"), where).items()
    }
    try:
        table = as_object(content.get("classes"), f"{where}: classes")
        computed = _content_id(table, splits)
        classes = ClassTable.from_dict(table)
    except (DatasetError, UnicodeEncodeError) as error:
        raise ShardError(f"{where}: {error}") from error
    if recorded != computed:
        raise ShardError(
            f"{where} was changed: its id {shown(recorded)} is not the hash of its content; {AGAIN}"
        )
    return Manifest(computed, classes, splits)


def _content(store: Store) -> dict[str, Any]:
    where = f"{store.root}/{MANIFEST_NAME}"
    if not store.exists(MANIFEST_NAME):
        raise ShardError(
            f"{store.root} holds no {MANIFEST_NAME}, so it is no packed data set, or packing did not finish; "
            f"{_cure(store.root)}"
        )
    content = as_object(parse_json(store.read_all(MANIFEST_NAME), where), where)
    if content.get("format") != FORMAT:
        raise ShardError(f"{where} has format {shown(content.get('format'))}; this version reads {FORMAT}")
    refuse_unknown(content, _FIELDS, where)
    return content


def _cure(root: str) -> str:
    """What to type where a root has no manifest: what makes one of the shards there, or of a tree."""
    pack, index = "python jobs/pack_cityscapes.py --root TREE --out", "python jobs/shards.py index"
    if not is_address(root):
        foreign = not Path(root, _PACKING_RECORD).exists() and any(Path(root).rglob("*.tar"))
        return f"type {index} {root} --classes FILE for the tars in it" if foreign else f"type {pack} {root}"
    if root.startswith(("s3:", "gs:")):
        return (
            f"type {pack} {root}, or, for shards that are there, {index} {root} --classes FILE --shards NAMES"
        )
    return (
        f"nothing can be written there: type {pack} DIR, or, for shards that are there, {index} DIR "
        "--classes FILE, where the server's files lie, and copy what is missing"
    )


def _split(name: str, content: Mapping[str, Any], where: str) -> Split:
    where = f"{where}: split {shown(name)}"
    refuse_unknown(content, _SPLIT_FIELDS, where)
    listed = content.get("shards")
    if not isinstance(listed, list):
        raise ShardError(f"{where} lists no shards; {AGAIN}")
    shards = ShardTable(_shard(shard, f"{where}, shard {number}") for number, shard in enumerate(listed))
    split = Split(name, shards)
    # Sums are compared as Python's integers: they may be beyond int64, which would wrap round.
    for field, column in (("samples", shards.samples), ("bytes", shards.bytes)):
        counted = sum(column.tolist())
        if counted != count_field(content, field, where):
            raise ShardError(
                f"{where} claims {content.get(field)} {field}, its shards have {counted}; {AGAIN}"
            )
    names = Counter(shard["name"] for shard in listed)
    if len(names) != len(listed):
        raise ShardError(f"{where} lists a shard twice: {names.most_common(1)[0][0]}; {AGAIN}")
    return split


def _shard(content: object, where: str) -> ShardEntry:
    shard = as_object(content, where)
    refuse_unknown(shard, _SHARD_FIELDS, where)
    name = text_field(shard, "name", where)
    if not safe_name(name) or not name.endswith(".tar"):
        raise ShardError(f"{where}: shard name {shown(name)} is not a plain relative name of a .tar; refused")
    samples, num_bytes = count_field(shard, "samples", where), count_field(shard, "bytes", where)
    if samples * _SAMPLE_IN_TAR > num_bytes:
        raise ShardError(f"{where}: {samples} samples cannot lie in the {num_bytes} bytes of {name}; {AGAIN}")
    return ShardEntry(
        name,
        samples,
        num_bytes,
        digest_field(shard, "sha256", where),
        digest_field(shard, "index_sha256", where),
    )


def _content_id(classes: Mapping[str, Any], splits: Mapping[str, Split]) -> str:
    """sha256 of the content as canonical JSON: sorted keys, no blanks, UTF-8; made shard by shard."""
    digest = hashlib.sha256(f'{{"classes":{_canonical(classes)},"format":"{FORMAT}","splits":{{'.encode())
    for number, (name, split) in enumerate(sorted(splits.items())):
        digest.update(f"{',' if number else ''}{_canonical(name)}:".encode())
        digest.update(f'{{"bytes":{split.bytes},"samples":{split.samples},"shards":['.encode())
        for at, shard in enumerate(split.shards):
            digest.update(f"{',' if at else ''}{_canonical_shard(shard)}".encode())
        digest.update(b"]}")
    digest.update(b"}}")
    return digest.hexdigest()


def _canonical_shard(shard: ShardEntry) -> str:
    # Names are plain and hashes hex, so nothing needs to be escaped; json.dumps takes four times as long.
    return (
        f'{{"bytes":{shard.bytes},"index_sha256":"{shard.index_sha256}","name":"{shard.name}",'
        f'"samples":{shard.samples},"sha256":"{shard.sha256}"}}'
    )


def _shard_line(shard: ShardEntry) -> str:
    return (
        f'\n   {{"name": "{shard.name}", "samples": {shard.samples}, "bytes": {shard.bytes}, '
        f'"sha256": "{shard.sha256}", "index_sha256": "{shard.index_sha256}"}}'
    )


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
