"""Reading: every byte is checked, and whatever is absent, cut, flipped or lying is one clear ShardError."""

import hashlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.dataset import ShardDataset
from pipeline.data.labels import CITYSCAPES
from pipeline.data.manifest import load_manifest
from pipeline.data.packing.parallel import in_turn
from pipeline.data.packing.verify import verify_shards
from pipeline.data.store import LocalStore, safe_name
from pipeline.errors import SampleError, ShardError
from tests.rclone_server import serving


def read_all(root: str, split: str = "train") -> list:
    dataset = ShardDataset.open(root, split)
    return [dataset.sample_at(index) for index in range(len(dataset))]


def read_or_error(root: str, shard: int, sample: int):
    try:
        return ShardDataset.open(root, "train").read(shard, sample)
    except SampleError as error:
        return error


def flip(path: Path, offset: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def sign(root: str, content: dict) -> None:
    """Writes a manifest with a valid id, as one who lies on purpose would."""
    content.pop("id", None)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    content["id"] = hashlib.sha256(text.encode()).hexdigest()
    Path(root, "manifest.json").write_text(json.dumps(content))


def test_samples_are_the_trees_pictures_with_train_ids(tree, tmp_path, make_scene):
    from pipeline.data.packing.pack import pack_cityscapes

    pack_cityscapes(str(tree), str(tmp_path / "out"), samples_per_shard=3)
    samples = read_all(str(tmp_path / "out"))
    assert len(samples) == 11
    for sample in samples:
        image, label_ids = make_scene(int(sample.key[-6:]))
        assert np.array_equal(sample.image_HW3, image)
        expected = np.full(label_ids.shape, 255)
        for train_id, label_id in enumerate(CITYSCAPES.label_ids):
            expected[label_ids == label_id] = train_id
        assert np.array_equal(sample.label_HW, expected)


def test_threads_share_a_data_set_whose_files_are_closed_and_opened_again(packed):
    store = LocalStore(packed, max_open=1)
    manifest = load_manifest(packed)
    dataset = ShardDataset(store, manifest, manifest.splits["train"])
    expected = [sample.image_HW3.tobytes() for sample in read_all(packed)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: dataset.sample_at(i % 11).image_HW3.tobytes(), range(88)))
    assert got == expected * 8


@settings(max_examples=40, deadline=None)
@given(sample=st.integers(0, 10), kind=st.sampled_from(["image", "label"]),
       where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))  # fmt: skip
def test_a_flipped_bit_names_shard_key_and_offset_or_lies_where_no_pixel_comes_from(
    packed, tmp_path_factory, sample, kind, where, bit
):
    dataset = ShardDataset.open(packed, "train")
    shard, at = dataset.locate(sample)
    entry, listed = dataset.entry(shard, at), dataset.split.shards[shard]
    member = getattr(entry, kind)
    damaged = tmp_path_factory.mktemp("flip")
    (damaged / "train").mkdir()
    for name in ("manifest.json", listed.name, listed.name.replace(".tar", ".index.jsonl")):
        (damaged / name).write_bytes(Path(packed, name).read_bytes())
    flip(damaged / listed.name, member.offset + int(where * member.bytes), bit)
    found = read_or_error(str(damaged), shard, at)
    if isinstance(found, SampleError):
        for part in (listed.name, repr(entry.key), f"{kind} of", f"offset {member.offset}"):
            assert part in str(found)
    else:
        sound = dataset.read(shard, at)
        assert np.array_equal(found.image_HW3, sound.image_HW3)
        assert np.array_equal(found.label_HW, sound.label_HW)


def test_a_truncated_tar_is_found_before_and_at_reading(own):
    path = Path(own, "train/train-000001.tar")
    path.write_bytes(path.read_bytes()[:3000])
    dataset = ShardDataset.open(own, "train")
    with pytest.raises(ShardError, match=r"train-000001\.tar has 3000 bytes, the manifest says \d+"):
        dataset.preflight()
    with pytest.raises(ShardError, match=r"train-000001\.tar is truncated: bytes \d+\+\d+ end after"):
        dataset.read(1, 2)


def test_an_absent_shard_is_named_before_and_at_reading(own):
    Path(own, "train/train-000002.tar").unlink()
    dataset = ShardDataset.open(own, "train")
    for action in (dataset.preflight, lambda: dataset.read(2, 0)):
        with pytest.raises(
            ShardError, match=r"train-000002\.tar is listed but cannot be opened: No such file"
        ):
            action()


def test_whole_data_passes_preflight_and_audit(packed):
    for split in ("train", "val"):
        ShardDataset.open(packed, split).preflight()
        assert [
            shard.problems for shard in verify_shards(packed, [split], True, in_turn) if shard.problems
        ] == []


def test_an_audit_finds_a_shard_that_differs_where_no_sample_lies(own):
    dataset = ShardDataset.open(own, "train")
    flip(Path(own, dataset.split.shards[1].name), 0, 0)  # a tar header
    dataset.preflight()
    problems = [
        problem for shard in verify_shards(own, ["train"], False, in_turn) for problem in shard.problems
    ]
    said = r"train-000001\.tar is not the shard that the manifest lists \(sha256"
    assert any(re.search(said, problem) for problem in problems)


@pytest.mark.parametrize(
    ("lie", "message"),
    [
        (lambda c: c["splits"]["train"].update(samples=12), r"'train' claims 12 samples, its shards have 11"),
        (lambda c: c["splits"]["train"].update(bytes=1), r"claims 1 bytes"),
        (lambda c: c["splits"]["train"]["shards"].append(c["splits"]["train"]["shards"][0]), r"claims 11"),
        (lambda c: c["splits"]["train"]["shards"][0].update(name="../a.tar"), r"not a plain relative name"),
        (lambda c: c["splits"]["train"]["shards"][0].update(name="/etc/a.tar"), r"not a plain relative name"),
        (lambda c: c["splits"]["train"]["shards"][0].update(samples=-1), r"'samples' is -1, not a count"),
        (lambda c: c["splits"]["train"]["shards"][0].update(samples="3"), r"'samples' is '3'"),
        (lambda c: c["splits"]["train"]["shards"][0].pop("sha256"), r"'sha256' is None"),
        (lambda c: c["splits"]["train"].update(shards=None), r"lists no shards"),
        (lambda c: c.update(splits=[]), r"an object is expected"),
        (
            lambda c: c.update(format="ccs-shards/9"),
            r"format 'ccs-shards/9'; this version reads ccs-shards/1",
        ),
        (lambda c: c.update(classes={}), r"class table"),
        (lambda c: c.pop("classes"), r"classes"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(own, lie, message):
    content = json.loads(Path(own, "manifest.json").read_text())
    lie(content)
    sign(own, content)
    with pytest.raises(ShardError, match=message):
        load_manifest(own)


def test_a_manifest_with_another_count_than_its_index_is_refused_at_reading(own):
    content = json.loads(Path(own, "manifest.json").read_text())
    content["splits"]["train"]["samples"] += 1
    content["splits"]["train"]["shards"][0]["samples"] += 1
    sign(own, content)
    with pytest.raises(ShardError, match=r"has 3 samples, the manifest says 4"):
        ShardDataset.open(own, "train").read(0, 0)


def test_a_manifest_that_was_changed_by_hand_is_refused(own):
    path = Path(own, "manifest.json")
    path.write_text(path.read_text().replace('"road"', '"Road"'))
    with pytest.raises(ShardError, match=r"was changed: its id .* is not the hash"):
        load_manifest(own)


def test_a_broken_manifest_and_a_missing_one_are_refused(own):
    Path(own, "manifest.json").write_text('{"format": ')
    with pytest.raises(ShardError, match=r"is not JSON"):
        load_manifest(own)
    Path(own, "manifest.json").unlink()
    with pytest.raises(ShardError, match=r"holds no manifest\.json.*type python jobs/pack_cityscapes\.py"):
        load_manifest(own)
    with pytest.raises(ShardError, match=r"no such folder"):
        load_manifest(own + "-not")


def test_where_a_manifest_is_missing_the_command_is_named_that_can_make_it(tmp_path):
    with pytest.raises(ShardError, match=r"type python jobs/pack_cityscapes\.py --root TREE --out /"):
        load_manifest(str(tmp_path))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "foreign-000.tar").touch()
    with pytest.raises(ShardError, match=rf"type python jobs/shards\.py index {tmp_path} --classes FILE"):
        load_manifest(str(tmp_path))
    with serving("http", tmp_path) as address, pytest.raises(ShardError) as error:
        load_manifest(f"http://{address}/train")
    assert f"--out http://{address}" not in str(error.value), "nothing can be written there"
    assert "jobs/pack_cityscapes.py --root TREE --out DIR" in str(error.value)
    assert "jobs/shards.py index DIR --classes FILE" in str(error.value)


def test_an_index_other_than_the_listed_one_is_refused(own):
    path = Path(own, "train/train-000000.index.jsonl")
    path.write_bytes(path.read_bytes().replace(b"city0", b"city9"))
    with pytest.raises(
        ShardError, match=r"train-000000\.index\.jsonl is not the index that the manifest lists"
    ):
        ShardDataset.open(own, "train").read(0, 0)


@pytest.mark.parametrize("damage", ["absent", "changed"])
def test_preflight_finds_an_index_that_is_absent_or_another(own, damage):
    path = Path(own, "train/train-000000.index.jsonl")
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ShardError, match=r"train-000000\.index\.jsonl"):
        ShardDataset.open(own, "train").preflight()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e["image"].update(codec="pyd"), r"codecs 'pyd' and 'png'"),
        (lambda e: e["label"].update(codec="jpeg"), r"codecs 'png' and 'jpeg'"),
        (lambda e: e["image"].update(offset=10**12), r"lies outside train/train-000000\.tar"),
        (lambda e: e["image"].update(bytes=0), r"lies outside"),
        (lambda e: e.update(height=0), r"a picture of 0x52"),
        (lambda e: e.update(height=37), r"is a png of 36x52 pixels; its index says png of 37x52"),
        (lambda e: e["image"].update(codec="jpeg"), r"is a png of 36x52 pixels; its index says jpeg"),
        (lambda e: e.update(key="city0_000001"), r"lists a key twice"),
        (lambda e: e.pop("label"), r"an object is expected"),
    ],
)
def test_an_index_that_lies_is_refused(own, change, message):
    path = Path(own, "train/train-000000.index.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    change(lines[0])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    content = json.loads(Path(own, "manifest.json").read_text())
    content["splits"]["train"]["shards"][0]["index_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    sign(own, content)
    with pytest.raises(ShardError, match=message):
        ShardDataset.open(own, "train").read(0, 0)


def test_a_label_with_ids_outside_the_classes_is_refused(own):
    content = json.loads(Path(own, "manifest.json").read_text())
    for field in ("names", "colors", "label_ids"):
        content["classes"][field] = content["classes"][field][:2]
    sign(own, content)
    with pytest.raises(ShardError, match=r"train ids \[.*\] are outside the manifest's 2 classes"):
        read_all(own)


def test_absent_and_empty_splits_are_refused(own):
    with pytest.raises(ShardError, match=r"no split 'vall' \(did you mean val\?\); it has train, val"):
        ShardDataset.open(own, "vall")
    content = json.loads(Path(own, "manifest.json").read_text())
    content["splits"]["val"] = {"samples": 0, "bytes": 0, "shards": []}
    sign(own, content)
    with pytest.raises(ShardError, match=r"split 'val' has 0 samples in 0 shards"):
        ShardDataset.open(own, "val")


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../b", "a//b", "", ".", "a/.", "~/x", "a b", "a\n"]
)
def test_names_that_could_leave_the_root_are_refused(packed, name):
    assert not safe_name(name)
    with pytest.raises(ShardError, match="refused"):
        LocalStore(packed).read(name, 0, 1)


def test_short_reads_are_completed(packed, monkeypatch):
    whole = LocalStore(packed).read_all("manifest.json")
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: real(fd, min(n, 100), at))
    assert LocalStore(packed).read_all("manifest.json") == whole


def test_a_picture_too_large_is_refused_before_it_is_decoded(monkeypatch):
    from pipeline.data.decode import MAX_PIXELS, decode_rgb
    from pipeline.errors import DatasetError

    small = cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes()
    bomb = small[:16] + (100_000).to_bytes(4, "big") + (100_000).to_bytes(4, "big") + small[24:]
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(DatasetError, match=f"claims 100000x100000 pixels; 1 to {MAX_PIXELS}"):
        decode_rgb(bomb, "bomb.png")


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a" + bytes(40), bytes(50)]
)
def test_what_is_no_picture_is_refused(data):
    from pipeline.data.decode import decode_rgb
    from pipeline.errors import DatasetError

    with pytest.raises(DatasetError, match=r"x is neither a whole PNG nor a whole JPEG"):
        decode_rgb(data, "x")


def test_reading_needs_numpy_and_opencv_alone(packed):
    program = f"""
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "ray", "mlflow", "webdataset", "smart_open", "isal"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
import pkgutil, importlib, pipeline.data
for module in pkgutil.iter_modules(pipeline.data.__path__):
    importlib.import_module("pipeline.data." + module.name)
from pipeline.config import DataConfig
from pipeline.data.dataset import ShardDataset
from pipeline.data.loader import TrainLoader
from pipeline.world import World
loader = TrainLoader(ShardDataset.open({packed!r}, "train"), DataConfig(), 0, World(), 2)
print(next(loader.batches(0)).image_BHW3.shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "(2, 128, 256, 3)\n", done.stderr
