"""Manifests and indexes: old files open, a million shards stay small, every lie is one clear ShardError."""

import copy
import hashlib
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.index import Member, SampleEntry, index_text, load_index
from pipeline.data.labels import CITYSCAPES
from pipeline.data.manifest import Split, load_manifest, make_manifest, manifest_text
from pipeline.data.shard_table import ShardEntry, ShardTable
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


IMAGE, LABEL = Member("png", 1024, 300, 7), Member("png", 2048, 80, 8)
SAMPLES = tuple(SampleEntry(f"a/b_{i}", 36, 52, IMAGE, LABEL) for i in range(3))


def indexed(folder: Path, data: bytes, samples: int = 3) -> tuple[LocalStore, ShardEntry]:
    (folder / "x.index.jsonl").write_bytes(data)
    listed = ShardEntry("x.tar", samples, 10240, "0" * 64, hashlib.sha256(data).hexdigest())
    return LocalStore(str(folder)), listed


def test_an_index_reads_back_and_that_of_an_empty_shard_is_empty(tmp_path):
    assert load_index(*indexed(tmp_path, index_text(SAMPLES).encode())) == SAMPLES
    assert load_index(*indexed(tmp_path, b"", samples=0)) == ()


def line(**changes):
    return lambda sample: sample.update(changes)


def member(**changes):
    return lambda sample: sample["image"].update(changes)


INDEX_LIES = {
    "beyond the shard": (member(offset=10240), r":2: image: a member at 10240\+300 lies outside x\.tar"),
    "longer than the shard": (member(bytes=9300), r":2: image: a member at 1024\+9300 lies outside"),
    "no bytes": (member(bytes=0), r"lies outside"),
    "negative offset": (member(offset=-512), r":2: image: 'offset' is -512, not a count"),
    "offset beyond int64": (member(offset=2**70), r"'offset' is \d+, not a count"),
    "crc32 of 33 bits": (member(crc32=2**32), r"'crc32' is 4294967296, not a count of 0 to 4294967295"),
    "a fraction": (member(bytes=300.0), r":2 is not JSON \(300\.0 is no whole number\)"),
    "another codec": (member(codec="pickle"), r":2: codecs 'pickle' and 'png'"),
    "a codec that is none": (member(codec=["png"]), r"'codec' is \['png'\], not a text"),
    "a jpeg label": (lambda s: s["label"].update(codec="jpeg"), r"codecs 'png' and 'jpeg'"),
    "no label": (lambda s: s.pop("label"), r":2: label: an object is expected where None stands"),
    "no pixels": (line(height=0), r"a picture of 0x52 pixels"),
    "an unknown field": (line(command="id"), r":2: unknown field 'command'"),
    "a key twice": (line(key="a/b_0"), r"lists a key twice"),
    "a key that leaves the folder": (line(key="../../x"), r":2: key '\.\./\.\./x' is no plain relative name"),
    "an absolute key": (line(key="/etc/x"), r"no plain relative name"),
    "a key of two lines": (line(key="a\nRESULT {}"), r"no plain relative name"),
    "no key": (line(key=""), r":2: 'key' is '', not a text"),
}


@pytest.mark.parametrize("lie", INDEX_LIES)
def test_a_lying_index_is_refused_with_its_line(tmp_path, lie):
    change, message = INDEX_LIES[lie]
    lines = [json.loads(text) for text in index_text(SAMPLES).splitlines()]
    change(lines[1])
    data = "".join(json.dumps(sample) + "\n" for sample in lines).encode()
    with pytest.raises(ShardError, match=message) as error:
        load_index(*indexed(tmp_path, data))
    assert f"{tmp_path}/x.index.jsonl" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("data", "samples", "message"),
    [
        (index_text(SAMPLES).encode(), 4, r"has 3 samples, the manifest says 4"),
        (index_text(SAMPLES).encode(), 2, r"has 3 samples, the manifest says 2"),
        (index_text(SAMPLES).encode(), 0, r"has 3 samples, the manifest says 0"),
        (b"", 1, r"has 0 samples, the manifest says 1"),
        (b"\n\n\n", 3, r"x\.index\.jsonl:1 is not JSON"),
        (b"\xff\n", 1, r":1 is not JSON \('utf-8' codec"),
        (b"[" * 10**5 + b"\n", 1, r":1 is nested too deeply"),
        (b"7\n", 1, r":1: an object is expected where 7 stands"),
    ],
)
def test_a_broken_index_is_refused(tmp_path, data, samples, message):
    with pytest.raises(ShardError, match=message):
        load_index(*indexed(tmp_path, data, samples))


def test_sums_of_many_shards_are_exact():
    table = ShardTable(entries(3000))
    assert Split("train", table).samples == sum(range(5)) * 600
    assert np.array_equal(table.bytes, SHARD_BYTES + np.arange(3000))
