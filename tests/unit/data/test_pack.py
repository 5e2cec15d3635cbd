"""Packing: shards that anyone's WebDataset opens, made whole or not at all, the same for the same tree."""

import fcntl
import io
import json
import os
import shutil
import tarfile
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset
from PIL import Image

from pipeline.data.dataset import ShardDataset
from pipeline.data.labels import CITYSCAPES
from pipeline.data.manifest import load_manifest
from pipeline.data.packing import pack as pack_module
from pipeline.data.packing import pictures, shard_writer
from pipeline.data.packing.pack import pack_cityscapes
from pipeline.data.packing.parallel import in_turn
from pipeline.data.packing.verify import verify_shards
from pipeline.disk import file_sha256
from pipeline.errors import ConfigError, DatasetError, WorldStateError


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def without_record(files: dict[str, bytes]) -> dict[str, bytes]:
    """The data set alone: the record also knows when the source's files were touched."""
    return {name: data for name, data in files.items() if name != "packing.jsonl"}


# WebDataset 1.0.2 leaves a shard's file to the garbage collector.
foreign_reader = pytest.mark.filterwarnings("ignore::ResourceWarning")


@foreign_reader
def test_shards_open_with_webdataset_and_its_decoder(tree, tmp_path):
    out = tmp_path / "out"
    report = pack_cityscapes(str(tree), str(out), samples_per_shard=4)
    shards = sorted(str(path) for path in (out / "train").glob("*.tar"))
    assert len(shards) == 3
    theirs = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8"))
    ours = ShardDataset.open(str(out), "train")
    assert report.samples == 16
    assert [sample["__key__"] for sample in theirs] == [ours.sample_at(i).key for i in range(11)]
    for index, sample in enumerate(theirs):
        assert {name for name in sample if not name.startswith("__")} == {"image.png", "label.png"}
        read = ours.sample_at(index)
        assert np.array_equal(sample["image.png"], read.image_HW3)
        assert np.array_equal(sample["label.png"], np.dstack([read.label_HW] * 3))


def test_shards_are_byte_for_byte_what_webdatasets_own_writer_writes(tree, tmp_path):
    out = tmp_path / "out"
    pack_cityscapes(str(tree), str(out), samples_per_shard=4)
    for path in out.rglob("*.tar"):
        theirs = io.BytesIO()
        with tarfile.open(path) as tar:
            members = {member.name: tar.extractfile(member).read() for member in tar}
        samples: dict[str, dict] = {}
        for name, data in members.items():
            key, _, ending = name.partition(".")
            samples.setdefault(key, {"__key__": key})[ending] = data
        with webdataset.TarWriter(theirs, user="", group="", mtime=0, encoder=False) as writer:
            for sample in samples.values():
                writer.write(sample)
        assert theirs.getvalue() == path.read_bytes()


def test_kept_images_keep_their_bytes_and_the_manifest_tells_the_truth(tree, tmp_path):
    out = tmp_path / "out"
    report = pack_cityscapes(str(tree), str(out), codec="keep", samples_per_shard=4)
    manifest = load_manifest(str(out))
    assert manifest.classes == CITYSCAPES
    assert report.manifest_id == manifest.id
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    assert report.shards == len(shards) == 5
    assert report.bytes == sum((out / shard.name).stat().st_size for shard in shards)
    seen = 0
    for shard in shards:
        assert file_sha256(out / shard.name) == shard.sha256
        with tarfile.open(out / shard.name) as tar:
            for member in tar:
                if member.name.endswith(".image.png"):
                    key = member.name.removesuffix(".image.png")
                    source = next(tree.rglob(f"{shard.name.split('/')[0]}/*/{key}_leftImg8bit.png"))
                    assert tar.extractfile(member).read() == source.read_bytes()
                    seen += 1
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
    assert seen == 16


def test_the_same_tree_gives_the_same_bytes_wherever_it_lies(tree, tmp_path):
    first = pack_cityscapes(str(tree), str(tmp_path / "a"), samples_per_shard=4)
    copy = shutil.copytree(tree, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    second = pack_cityscapes(str(copy), str(tmp_path / "b"), samples_per_shard=4)
    assert first == second
    assert without_record(files_of(tmp_path / "a")) == without_record(files_of(tmp_path / "b"))


def test_packing_again_decodes_and_writes_nothing(tree, tmp_path, monkeypatch):
    out = tmp_path / "out"
    first = pack_cityscapes(str(tree), str(out))
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr(pack_module, "scan_pictures", lambda *_: pytest.fail("scanned"))
    assert pack_cityscapes(str(tree), str(out)) == first
    for path in tree.rglob("*.png"):
        os.utime(path)  # touched, or copied: the content decides
    assert pack_cityscapes(str(tree), str(out)) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps


def test_an_interrupted_packing_leaves_no_data_set_and_goes_on(tree, tmp_path, monkeypatch):
    whole, out = tmp_path / "whole", tmp_path / "out"
    expected = pack_cityscapes(str(tree), str(whole), samples_per_shard=3)
    written = []
    real = shard_writer.write_shard

    def dies_at_third(task, **rest):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(task.name)
        return real(task, **rest)

    monkeypatch.setattr(pack_module, "write_shard", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        pack_cityscapes(str(tree), str(out), samples_per_shard=3)
    assert not (out / "manifest.json").exists()
    (out / "train" / "train-000002.tar.partial").write_bytes(b"torn")
    (out / "train" / "train-000099.tar").write_bytes(b"of a larger tree")
    (out / "train" / "train-000001.tar").write_bytes(b"damaged since")
    again = []
    monkeypatch.setattr(
        pack_module, "write_shard", lambda task, **kw: again.append(task.name) or real(task, **kw)
    )
    monkeypatch.setattr(pack_module, "scan_pictures", lambda *_: pytest.fail("scanned twice"))
    assert pack_cityscapes(str(tree), str(out), samples_per_shard=3) == expected
    assert again == [f"train/train-{n:06d}.tar" for n in (1, 2, 3)] + [
        "val/val-000000.tar",
        "val/val-000001.tar",
    ]
    ours = files_of(out)
    assert without_record(files_of(whole)) == without_record(ours)


def test_a_shard_lost_from_a_finished_data_set_is_packed_again(tree, tmp_path):
    out = tmp_path / "out"
    first = pack_cityscapes(str(tree), str(out), samples_per_shard=4)
    before = files_of(out)
    (out / "train" / "train-000001.tar").unlink()
    assert pack_cityscapes(str(tree), str(out), samples_per_shard=4) == first
    assert without_record(files_of(out)) == without_record(before)


def test_a_picture_that_vanishes_while_it_is_packed_is_named(tree, tmp_path, monkeypatch):
    real = pack_module.scan_pictures

    def scan(*arguments):
        digests = real(*arguments)
        monkeypatch.setattr(shard_writer, "read_file", absent)
        return digests

    def absent(path):
        return pictures.read_file(path.with_name("gone.png"))

    monkeypatch.setattr(pack_module, "scan_pictures", scan)
    with pytest.raises(
        DatasetError, match=r"gone\.png cannot be read: No such file or directory; replace or remove"
    ):
        pack_cityscapes(str(tree), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_tree_that_changed_while_packing_was_interrupted_starts_anew(
    tree, tmp_path, monkeypatch, add_pair, make_scene
):
    out = tmp_path / "out"
    pack_cityscapes(str(tree), str(out), samples_per_shard=4)
    (out / "manifest.json").unlink()  # as if it had been stopped before its end
    add_pair(tree, "train", "city0", "aaa", *make_scene(77))
    report = pack_cityscapes(str(tree), str(out), samples_per_shard=4)
    assert report.samples == 17
    assert (
        report.manifest_id == pack_cityscapes(str(tree), str(tmp_path / "b"), samples_per_shard=4).manifest_id
    )


def test_a_folder_that_holds_something_else_is_left_alone(tree, tmp_path, add_pair, make_scene):
    other = tmp_path / "photos"
    other.mkdir()
    (other / "mine.txt").write_text("precious")
    with pytest.raises(
        DatasetError, match=r"is not empty \(it has mine\.txt\); --out takes a new or empty folder"
    ):
        pack_cityscapes(str(tree), str(other))
    out = tmp_path / "out"
    pack_cityscapes(str(tree), str(out))
    before = files_of(out)
    add_pair(tree, "train", "city0", "more", *make_scene(78))
    with pytest.raises(DatasetError, match=r"holds another data set.*take another --out"):
        pack_cityscapes(str(tree), str(out))
    assert files_of(out) == before
    with pytest.raises(DatasetError, match=r"is a file"):
        pack_cityscapes(str(tree), str(other / "mine.txt"))
    with pytest.raises(ConfigError, match=r"cannot write to https://a/b: type a folder, s3://BUCKET/PATH or"):
        pack_cityscapes(str(tree), "https://secret@a/b")


def test_shards_keep_to_both_limits(tree, tmp_path):
    pack_cityscapes(str(tree), str(tmp_path / "few"), bytes_per_shard=20_000)
    for split in load_manifest(str(tmp_path / "few")).splits.values():
        for shard in split.shards:
            assert shard.samples == 1 or shard.bytes < 20_000 + 4096 * shard.samples
    pack_cityscapes(str(tree), str(tmp_path / "one"), bytes_per_shard=1)
    assert set(load_manifest(str(tmp_path / "one")).splits["train"].counts.tolist()) == {1}


@foreign_reader
@pytest.mark.parametrize("codec", ["striped", "keep"])
@pytest.mark.parametrize("kind", ["rgba", "grey", "deep", "deep-grey", "palette", "jpeg", "grey-jpeg"])
def test_any_kind_of_image_is_read_as_rgb_however_it_is_packed(tmp_path, codec, kind, make_scene, add_pair):
    image, label = make_scene(3)
    image = cv2.GaussianBlur(image, (0, 0), 6)
    grey = np.repeat(image[..., :1], 3, axis=2)
    tree, suffix, expected, tolerance = tmp_path / "tree", "png", image, 0
    stored = {
        "rgba": np.dstack([image[..., ::-1], np.full(label.shape, 90, np.uint8)]),
        "grey": image[..., 0],
        "deep": image.astype(np.uint16) * 257,
        "deep-grey": image[..., 0].astype(np.uint16) * 257,
        "palette": image,
        "jpeg": image,
        "grey-jpeg": image[..., 0],
    }[kind]
    if "grey" in kind:
        expected = grey
    if "jpeg" in kind:
        suffix, tolerance = "jpg", 12
    add_pair(tree, "train", "c", "k", stored, label, suffix)
    path = next((tree / "leftImg8bit").rglob(f"*.{suffix}"))
    if kind == "palette":
        picture = Image.fromarray(image).quantize(16)
        picture.save(path)
        expected = np.asarray(picture.convert("RGB"))
    pack_cityscapes(str(tree), str(tmp_path / "out"), ("train",), codec)
    read = ShardDataset.open(str(tmp_path / "out"), "train").sample_at(0)
    assert np.abs(read.image_HW3.astype(int) - expected.astype(int)).max() <= tolerance
    theirs = next(
        iter(webdataset.WebDataset(str(tmp_path / "out/train/train-000000.tar"), shardshuffle=False))
    )
    assert (theirs[f"image.{suffix}"] == path.read_bytes()) is (codec == "keep" or suffix == "jpg")
    assert f"image.{suffix}" in theirs
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(theirs["label.png"]))), read.label_HW)


def test_an_orientation_tag_does_not_turn_an_image_away_from_its_label(tmp_path, make_scene, add_pair):
    image, label = make_scene(4)
    add_pair(tmp_path / "tree", "train", "c", "k", None, label)
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = tmp_path / "tree/leftImg8bit/train/c"
    Image.fromarray(image).save(folder / "k_leftImg8bit.jpg", exif=exif, quality=95)
    pack_cityscapes(str(tmp_path / "tree"), str(tmp_path / "out"), splits=("train",))
    assert ShardDataset.open(str(tmp_path / "out"), "train").sample_at(0).image_HW3.shape[:2] == label.shape


def test_no_space_is_refused_before_a_byte_is_written(tree, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    with pytest.raises(
        WorldStateError, match=r"no space for 0\.\d MB of shards at .*out: 0\.0 MB are free; free"
    ):
        pack_cityscapes(str(tree), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_names_the_file_and_leaves_no_torn_one(tree, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorldStateError, match=r"cannot write .*: No space left on device; free the space"):
        pack_cityscapes(str(tree), str(tmp_path / "out"))
    assert files_of(tmp_path / "out") == {}


def test_a_folder_that_cannot_be_made_is_a_clear_line(tree, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorldStateError, match=r"cannot make .*file/out: Not a directory; take another --out"):
        pack_cityscapes(str(tree), str(tmp_path / "file" / "out"))


def test_a_place_where_nothing_can_be_made_is_no_full_disk(tree):
    with pytest.raises(WorldStateError, match=r"cannot make /proc/shards: No such file or directory; take"):
        pack_cityscapes(str(tree), "/proc/shards")


def test_two_packers_do_not_write_into_one_folder(tree, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    descriptor = os.open(out, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(WorldStateError, match=r"another process is packing into .*out; wait"):
            pack_cityscapes(str(tree), str(out))
    finally:
        os.close(descriptor)
    assert pack_cityscapes(str(tree), str(out)).samples == 16


@pytest.mark.parametrize("same_tree", [True, False])
def test_what_was_packed_while_a_second_packer_looked_at_its_tree_stays(tree, tmp_path, make_tree, same_tree):
    other = tree if same_tree else make_tree(tmp_path / "other", train=4, val=2)
    out, packed = tmp_path / "out", []

    def after_the_first_packer(function, tasks):
        if not packed:
            packed.append(pack_cityscapes(str(tree), str(out)))
        return map(function, tasks)

    with pytest.raises(WorldStateError, match=r"another process has packed into .*out meanwhile; run"):
        pack_cityscapes(str(other), str(out), map_tasks=after_the_first_packer)
    assert load_manifest(str(out)).id == packed[0].manifest_id
    assert not any(shard.problems for shard in verify_shards(str(out), ["train"], True, in_turn))


def test_a_packer_killed_in_its_first_write_does_not_stand_in_its_own_way(tree, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "packing.jsonl.0f0f0f0f.partial").write_bytes(b'{"seen')
    expected = pack_cityscapes(str(tree), str(tmp_path / "whole"))
    assert pack_cityscapes(str(tree), str(out)) == expected
    assert not list(out.rglob("*.partial"))


def test_record_with_a_torn_line_is_read_up_to_it(tree, tmp_path):
    out = tmp_path / "out"
    first = pack_cityscapes(str(tree), str(out), samples_per_shard=4)
    record = out / "packing.jsonl"
    lines = record.read_text().splitlines()
    assert len(lines) == 1 + first.shards
    assert json.loads(lines[0]).keys() == {"seen", "content"}
    record.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    (out / "manifest.json").unlink()
    assert pack_cityscapes(str(tree), str(out), samples_per_shard=4) == first
