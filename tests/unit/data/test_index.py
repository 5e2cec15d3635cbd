"""Indexes: they read back, and whatever is wrong in one is a ShardError that names its line."""

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.data.index import Member, SampleEntry, index_text, load_index
from pipeline.data.shard_table import ShardEntry
from pipeline.data.store import LocalStore
from pipeline.errors import ShardError

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
