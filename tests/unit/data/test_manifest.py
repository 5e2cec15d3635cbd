"""Manifests: old files open, many shards stay small, every lie is one clear ShardError before a run."""

import copy
import hashlib
import json
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import dataset as dataset_module
from pipeline.data.dataset import ShardDataset
from pipeline.data.labels import CITYSCAPES
from pipeline.data.manifest import Split, load_manifest, make_manifest, manifest_text
from pipeline.data.packing.verify import audit_shard
from pipeline.data.shard_table import ShardEntry, ShardTable, index_name, sha256_hex
from pipeline.data.store import LocalStore
from pipeline.errors import ShardError

SHARD_BYTES = 81920


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def entries(count: int) -> list[ShardEntry]:
    return [
        ShardEntry(
            f"train/train-{i:06d}.tar", i % 5, SHARD_BYTES + i, digest(f"tar {i}"), digest(f"index {i}")
        )
        for i in range(count)
    ]


def content() -> dict:
    shards = [{"name": e.name, "samples": e.samples, "bytes": e.bytes,
               "sha256": e.sha256, "index_sha256": e.index_sha256} for e in entries(4)]  # fmt: skip
    split = {"samples": 6, "bytes": 4 * SHARD_BYTES + 6, "shards": shards}
    return {"format": "ccs-shards/1", "classes": CITYSCAPES.to_dict(), "splits": {"train": split}}


def sign(content: dict) -> dict:
    """With the id that docs/data-format.md describes: a lie on purpose has a right one."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return content | {"id": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()}


def write(folder: Path, data: bytes | dict) -> str:
    text = json.dumps(data).encode() if isinstance(data, dict) else data
    (folder / "manifest.json").write_bytes(text)
    return str(folder)


@pytest.mark.parametrize("layout", [{"indent": 1, "ensure_ascii": False}, {}, {"separators": (",", ":")}])
def test_manifests_of_any_layout_open(tmp_path, layout):
    """The first is that of the versions that wrote a line a field."""
    made = sign(content())
    manifest = load_manifest(write(tmp_path, json.dumps(made, **layout).encode()))
    assert manifest.id == made["id"]
    assert list(manifest.splits["train"].shards) == entries(4)
    assert manifest.splits["train"].counts.tolist() == [0, 1, 2, 3]
    assert (manifest.splits["train"].samples, manifest.classes) == (6, CITYSCAPES)


def test_a_written_manifest_reads_back_equal_and_its_id_is_that_of_its_canonical_json(tmp_path):
    splits = {name: Split(name, ShardTable(entries(n))) for name, n in (("val", 3), ("train", 50), ("ö", 0))}
    manifest = make_manifest(CITYSCAPES, splits)
    text = manifest_text(manifest)
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    assert load_manifest(str(tmp_path)) == manifest
    parsed = json.loads(text)
    assert manifest.id == parsed.pop("id") == sign(parsed)["id"]
    assert max(map(len, text.splitlines()[2:])) < 300  # a line a shard


def test_a_table_is_a_sequence_of_its_entries():
    listed = entries(7)
    table = ShardTable(iter(listed))
    assert (len(table), list(table), list(reversed(table))) == (7, listed, listed[::-1])
    assert (table[2], table[-1], table[1:6:2]) == (listed[2], listed[-1], tuple(listed[1:6:2]))
    assert table == ShardTable(listed) != ShardTable(listed[:6])
    assert hash(table) == hash(ShardTable(listed))
    assert table.samples.tolist() == [entry.samples for entry in listed]
    for beyond in (7, -8):
        with pytest.raises(IndexError):
            table[beyond]
    assert list(ShardTable([])) == []


def test_a_table_takes_few_bytes_a_shard():
    listed = entries(5000)
    tracemalloc.start()
    table = ShardTable(listed)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(table) == 5000
    assert taken / 5000 < 160  # 64 of hashes, 24 of numbers, the name; objects take 450


def shard(**changes):
    return lambda c: c["splits"]["train"]["shards"][1].update(changes)


def split(**changes):
    return lambda c: c["splits"]["train"].update(changes)


LIES = {
    "samples of the split": (split(samples=7), r"split 'train' claims 7 samples, its shards have 6"),
    "bytes of the split": (split(bytes=1), r"claims 1 bytes"),
    "samples of a shard": (shard(samples=2), r"claims 6 samples, its shards have 7"),
    "a billion samples": (shard(samples=10**9), r"shard 1: 1000000000 samples cannot lie in the 81921 bytes"),
    "a number beyond int64": (shard(samples=2**64), r"'samples' is 18446744073709551616, not a count"),
    "sums that wrap round": (
        lambda c: [s.update(bytes=2**53) for s in c["splits"]["train"]["shards"]], r"claims 327686 bytes"),
    "negative": (shard(bytes=-1), r"shard 1: 'bytes' is -1, not a count"),
    "a text": (shard(samples="3"), r"shard 1: 'samples' is '3'"),
    "a truth": (shard(samples=True), r"shard 1: 'samples' is True"),
    "a fraction": (shard(samples=1.5), r"is not JSON \(1\.5 is no whole number\)"),
    "not a number": (shard(samples=float("nan")), r"is not JSON \(NaN is no whole number\)"),
    "infinity": (split(samples=float("inf")), r"is not JSON \(Infinity is no whole number\)"),
    "no hash": (lambda c: c["splits"]["train"]["shards"][1].pop("sha256"), r"shard 1: 'sha256' is None"),
    "a short hash": (shard(sha256="ab"), r"shard 1: 'sha256' is 'ab', not the 64 hex digits"),
    "capitals in a hash": (shard(index_sha256="A" * 64), r"shard 1: 'index_sha256' is 'A+', not the 64"),
    "an unknown field": (shard(url="pipe:id"), r"shard 1: unknown field 'url'"),
    "an unknown field of a split": (split(extra=1), r"split 'train': unknown field 'extra'"),
    "an unknown field at the top": (lambda c: c.update(extra=1), r"unknown field 'extra'"),
    "a shard twice": (
        lambda c: c["splits"]["train"]["shards"].__setitem__(
            2, c["splits"]["train"]["shards"][2] | {"name": "train/train-000001.tar"}),
        r"split 'train' lists a shard twice: train/train-000001\.tar"),
    "a name that leaves the folder": (shard(name="../a.tar"), r"shard 1: shard name '\.\./a\.tar' is not"),
    "an absolute name": (shard(name="/etc/a.tar"), r"not a plain relative name"),
    "an address for a name": (shard(name="http://host/a.tar"), r"not a plain relative name"),
    "another suffix": (shard(name="train/a.pkl"), r"not a plain relative name of a \.tar"),
    "an endless name": (shard(name="a" * 10**6), r"shard name 'a+\.\.\.a+' is not"),
    "a shard that is none": (lambda c: c["splits"]["train"]["shards"].append([]), r"shard 4: an object is"),
    "no list": (split(shards={"0": 1}), r"split 'train' lists no shards"),
    "no splits": (lambda c: c.update(splits=[]), r"an object is expected where \[\] stands"),
    "another format": (lambda c: c.update(format="ccs-shards/9"), r"format 'ccs-shards/9'; this version"),
    "classes without names": (lambda c: c.update(classes={}), r"class table"),
    "classes of another type": (lambda c: c["classes"].update(colors=7), r"has a field of the wrong type"),
    "half a character": (lambda c: c["classes"]["names"].__setitem__(0, "\ud800"), r"surrogates not allowed"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_manifest_is_refused(tmp_path, lie):
    change, message = LIES[lie]
    lying = content()
    change(lying)
    with pytest.raises(ShardError, match=message) as error:
        load_manifest(write(tmp_path, sign(lying)))
    assert str(tmp_path / "manifest.json") in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


SOUND = json.dumps(sign(content())).encode()
TEXTS = {
    "empty": (b"", r"is not JSON"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00", r"is not JSON \('utf-8' codec can't decode"),
    "UTF-16": (SOUND.decode().encode("utf-16"), r"is not JSON"),
    "a byte order mark": (b"\xef\xbb\xbf" + SOUND, r"is not JSON \(Unexpected UTF-8 BOM"),
    "deeply nested": (b"[" * 10**6, r"is nested too deeply"),
    "deeply nested objects": (b'{"splits":' * 10**5, r"is nested too deeply"),
    "a list": (b"[]", r"an object is expected where \[\] stands"),
    "a field twice": (SOUND.replace(b'"samples": 2', b'"samples": 1, "samples": 2'), r"a field stands twice"),
    "endless digits": (SOUND.replace(b'"samples": 2', b'"samples": ' + b"9" * 5000), r"not JSON \(Exceeds"),
    "more after the end": (SOUND + SOUND, r"is not JSON \(Extra data"),
    "a changed character": (SOUND.replace(b'"road"', b'"Road"'), r"was changed: its id '\w+\.*\w*' is not"),
    "no id": (SOUND[: SOUND.rindex(b', "id"')] + b"}", r"was changed: its id None is not the hash"),
}  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_broken_manifest_is_refused(tmp_path, text):
    data, message = TEXTS[text]
    with pytest.raises(ShardError, match=message):
        load_manifest(write(tmp_path, data))


def test_a_manifest_cut_anywhere_is_refused(tmp_path):
    for end in range(0, len(SOUND), 7):
        with pytest.raises(ShardError):
            load_manifest(write(tmp_path, SOUND[:end]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(value=JSON, path=st.sampled_from([
    ("format",), ("classes",), ("classes", "names"), ("classes", "names", 3), ("classes", "colors", 2),
    ("classes", "label_ids", 0), ("splits",), ("splits", "train"), ("splits", "train", "samples"),
    ("splits", "train", "shards"), ("splits", "train", "shards", 1), ("splits", "train", "shards", 1, "name"),
    ("splits", "train", "shards", 2, "samples"), ("splits", "train", "shards", 3, "sha256"),
]))  # fmt: skip
def test_any_value_anywhere_is_a_shard_error_or_a_sound_manifest(tmp_path_factory, value, path):
    lying = copy.deepcopy(content())
    at = lying
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    folder = write(tmp_path_factory.mktemp("any"), sign(lying))
    try:
        manifest = load_manifest(folder)
    except ShardError:
        return
    assert manifest.id == sign(lying)["id"]


def test_sums_of_many_shards_are_exact():
    table = ShardTable(entries(3000))
    assert Split("train", table).samples == sum(range(5)) * 600
    assert np.array_equal(table.bytes, SHARD_BYTES + np.arange(3000))


@pytest.fixture
def many(tmp_path) -> ShardDataset:
    """A hundred shards without samples."""
    shards = []
    for number in range(100):
        name = f"{number:03d}.tar"
        (tmp_path / name).write_bytes(bytes(512))
        (tmp_path / index_name(name)).write_bytes(b"")
        shards.append(ShardEntry(name, 0, 512, sha256_hex(bytes(512)), sha256_hex(b"")))
    manifest = make_manifest(CITYSCAPES, {"train": Split("train", ShardTable(shards))})
    return ShardDataset(LocalStore(str(tmp_path)), manifest, manifest.splits["train"])


@pytest.mark.parametrize("number", [0, 1, 50, 98, 99])
def test_preflight_looks_at_every_local_file_of_many_shards(many, tmp_path, number):
    many.preflight()
    (tmp_path / f"{number:03d}.index.jsonl").unlink()
    with pytest.raises(ShardError, match=rf"{number:03d}\.index\.jsonl is listed but cannot be opened"):
        many.preflight()
    (tmp_path / f"{number:03d}.tar").write_bytes(b"")
    with pytest.raises(ShardError, match=rf"{number:03d}\.tar has 0 bytes, the manifest says 512"):
        many.preflight()


def test_preflight_reads_a_few_indexes_from_first_to_last_and_the_audit_all(many, tmp_path, monkeypatch):
    names = []
    monkeypatch.setattr(dataset_module, "load_index", lambda store, shard: names.append(shard.name))
    many.preflight()
    assert len(names) == 32
    assert (names[0], names[-1]) == ("000.tar", "099.tar")
    assert max(int(after[:3]) - int(name[:3]) for name, after in pairwise(names)) <= 4
    monkeypatch.undo()
    (tmp_path / "001.index.jsonl").write_bytes(b"{}\n")  # none of the few
    many.preflight()
    problems = audit_shard(many.split.shards[1], str(tmp_path), num_classes=0).problems
    assert "001.index.jsonl is not the index that the manifest lists" in problems[0]
