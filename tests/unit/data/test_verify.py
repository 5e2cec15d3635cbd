"""Audits: every byte is looked at, all problems are found, each names shard, key and offset."""

import hashlib
import json
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.data.index import load_index
from pipeline.data.manifest import load_manifest
from pipeline.data.packing.parallel import Processes, in_turn
from pipeline.data.packing.verify import verify_shards
from pipeline.data.store import open_store
from pipeline.errors import ShardError

ROOT = Path(__file__).resolve().parents[3]


def problems(root: str, decode: bool = False, splits=()) -> list[str]:
    return [line for shard in verify_shards(root, splits, decode, in_turn) for line in shard.problems]


def change(root: str, name: str, edit) -> None:
    path = Path(root, name)
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(data)


def entries(root: str, shard: int = 0):
    table = load_manifest(root).splits["train"].shards
    return load_index(open_store(root), table[shard])


def vouch(root: str) -> None:
    """Make the manifest say that shards and indexes are as they are now."""
    path = Path(root, "manifest.json")
    content = json.loads(path.read_text())
    content.pop("id")
    for split in content["splits"].values():
        for shard in split["shards"]:
            for field, name in (("sha256", shard["name"]),
                                ("index_sha256", shard["name"].replace(".tar", ".index.jsonl"))):  # fmt: skip
                shard[field] = hashlib.sha256(Path(root, name).read_bytes()).hexdigest()
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    path.write_text(json.dumps(content | {"id": hashlib.sha256(canonical.encode()).hexdigest()}))


def test_a_sound_data_set_has_no_problems(packed):
    with Processes(2) as map_tasks:
        audited = list(verify_shards(packed, (), True, map_tasks))
    assert [shard.problems for shard in audited] == [()] * 6
    assert sum(shard.samples for shard in audited) == 16
    assert len(list(verify_shards(packed, ("val",), False, in_turn))) == 2


def test_every_flipped_byte_of_a_shard_is_found(own):
    name = "train/train-000003.tar"
    whole = Path(own, name).read_bytes()
    for at in range(0, len(whole), 203):
        change(own, name, lambda data, at=at: data.__setitem__(at, data[at] ^ 4))
        found = problems(own, splits=("train",))
        assert any("train-000003.tar" in line for line in found), at
        Path(own, name).write_bytes(whole)
    assert problems(own) == []


def test_all_problems_are_listed_with_shard_key_and_offset(own):
    first, second = entries(own)[0], entries(own, 1)[1]
    change(own, "train/train-000000.tar", lambda d: d.__setitem__(first.image.offset + 40, 0x55))
    change(own, "train/train-000001.tar", lambda d: d.__setitem__(second.label.offset + 40, 0x55))
    change(own, "val/val-000000.tar", lambda d: d.__delitem__(slice(len(d) // 2, None)))
    Path(own, "val/val-000001.index.jsonl").unlink()
    found = problems(own)
    text = "\n".join(found)
    assert f"train-000000.tar: image of {first.key!r} at offset {first.image.offset}: " in text
    assert f"train-000001.tar: label of {second.key!r} at offset {second.label.offset}: " in text
    assert "train-000000.tar is not the shard that the manifest lists (sha256 differs)" in text
    assert "val-000000.tar is cut short" in text
    assert "val-000000.tar has" in text
    assert "val-000001.index.jsonl" in text
    assert all("\n" not in line for line in found)


def test_a_sample_that_the_index_leaves_out_is_found(own):
    name = "train/train-000000.index.jsonl"
    lines = Path(own, name).read_text().splitlines(keepends=True)
    Path(own, name).write_text("".join(lines[:-1]))
    content = json.loads(Path(own, "manifest.json").read_text())
    content["splits"]["train"]["shards"][0]["samples"] -= 1
    content["splits"]["train"]["samples"] -= 1
    Path(own, "manifest.json").write_text(json.dumps(content))
    vouch(own)
    left_out = json.loads(lines[-1])
    found = problems(own)
    assert found == [
        f"{own}/train/train-000000.tar: '{left_out['key']}.{kind}.png' at offset "
        f"{left_out[kind]['offset']} is in the tar and not in its index"
        for kind in ("image", "label")
    ]


def test_an_index_that_was_emptied_is_found(own):
    Path(own, "train/train-000000.index.jsonl").write_text("")
    content = json.loads(Path(own, "manifest.json").read_text())
    content["splits"]["train"]["samples"] -= content["splits"]["train"]["shards"][0]["samples"]
    content["splits"]["train"]["shards"][0]["samples"] = 0
    Path(own, "manifest.json").write_text(json.dumps(content))
    vouch(own)
    assert len(problems(own)) == 6
    assert all("is in the tar and not in its index" in line for line in problems(own))


def test_an_index_that_points_beside_its_members_is_found(own):
    name = "train/train-000000.index.jsonl"
    lines = [json.loads(line) for line in Path(own, name).read_text().splitlines()]
    lines[1]["image"]["offset"] += 1
    Path(own, name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    vouch(own)
    found = problems(own)
    assert any(
        f"image of {lines[1]['key']!r} at offset {lines[1]['image']['offset']}" in line for line in found
    )


def test_decoding_finds_what_checksums_cannot(own):
    """A picture that was broken before it was packed has sound checksums."""
    entry = entries(own)[0]
    broken = Path(own, "train/train-000000.tar").read_bytes()[entry.label.offset :][: entry.label.bytes]
    foreign = cv2.imencode(".png", np.full((entry.height, entry.width), 77, np.uint8))[1].tobytes()
    assert len(foreign) <= len(broken)
    foreign = foreign[:-12] + b"\0\0\0\0IEND\xaeB`\x82"
    size = len(foreign)

    def put(data):
        data[entry.label.offset : entry.label.offset + entry.label.bytes] = foreign + bytes(
            len(broken) - size
        )

    change(own, "train/train-000000.tar", put)
    name = "train/train-000000.index.jsonl"
    lines = [json.loads(line) for line in Path(own, name).read_text().splitlines()]
    stored = Path(own, "train/train-000000.tar").read_bytes()[entry.label.offset :][: entry.label.bytes]
    lines[0]["label"]["crc32"] = zlib.crc32(stored)
    Path(own, name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    vouch(own)
    assert problems(own) == []
    (found,) = problems(own, decode=True)
    assert f"label of {entry.key!r} at offset {entry.label.offset}: train ids [77] are outside" in found


def test_the_job_lists_each_problem_and_ends_with_2(own):
    entry = entries(own)[0]
    change(own, "train/train-000000.tar", lambda d: d.__setitem__(entry.image.offset + 40, 0x55))
    command = [sys.executable, str(ROOT / "jobs/shards.py"), "verify", own, "--processes", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert len(lines) == 3
    assert lines[-1] == f"shards: 2 problems in {own}, all listed above; copy or pack those again"
    result = json.loads(ended.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert (result["status"], result["problems"], result["shards"]) == ("shard_error", 2, 6)
    assert result["manifest_id"] == load_manifest(own).id
    Path(own, "manifest.json").unlink()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    result = json.loads(ended.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert {result[name] for name in ("manifest_id", "shards", "samples", "bytes", "problems")} == {None}


def test_a_split_that_is_not_there_is_refused_with_the_nearest(packed):
    with pytest.raises(ShardError, match=r"has no split 'vall' \(did you mean val\?\); it has train, val"):
        list(verify_shards(packed, ("vall",), False, in_turn))
