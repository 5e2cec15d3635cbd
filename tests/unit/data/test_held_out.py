"""Drives held out are a view of the same shards: nothing trains on them, and no other promise gets weaker."""

import shutil
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.config import DataConfig
from pipeline.data.dataset import ShardDataset, open_splits
from pipeline.data.eval_loader import EvalLoader
from pipeline.data.loader import TrainLoader
from pipeline.data.manifest import Split, load_manifest, make_manifest, manifest_text
from pipeline.data.packing.pack import pack_cityscapes
from pipeline.data.shard_table import ShardEntry, ShardTable, sha256_hex
from pipeline.data.staging import first_shards
from pipeline.errors import CheckpointError, ConfigError
from pipeline.world import World

DRIVES = "city1", "city3"
SEED = 23
EMPTY_TAR = bytes(10240)
CONFIG = DataConfig(
    input_height=32, input_width=48, crop_height=16, crop_width=24, streams=3, block=2, prefetch=2,
    held_out=",".join(DRIVES),
)  # fmt: skip


@pytest.fixture(scope="module")
def across(make_tree, tmp_path_factory) -> str:
    """Eleven samples in shards of four: of city1's three one is in the first shard, two in the second."""
    folder = tmp_path_factory.mktemp("across")
    pack_cityscapes(str(make_tree(folder / "tree")), str(folder / "shards"), samples_per_shard=4)
    return str(folder / "shards")


def listed(root: str) -> list[list[str]]:
    """The keys of each training shard, as tar lists them: no index, no code of ours."""
    keys = []
    for path in sorted(Path(root, "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            keys.append(list(dict.fromkeys(name.split(".")[0] for name in tar.getnames())))
    return keys


def is_theirs(key: str) -> bool:
    return key.split("_", maxsplit=1)[0] in DRIVES


def read(dataset: ShardDataset, world: World, batch: int, position: int, batches: int, workers: int = 0):
    """(position, key, pixels) of each sample that a rank trains on."""
    config = replace(CONFIG, loader_workers=workers)
    made = TrainLoader(dataset, config, SEED, world, batch).batches(position)
    samples = []
    for got in islice(made, batches):
        images, labels = map(bytes, got.image_BHW3), map(bytes, got.label_BHW)
        samples += zip(got.positions, got.keys, images, labels, strict=True)
    made.close()
    return samples


def test_the_views_part_every_shard_and_read_what_the_whole_split_has(across):
    shards = listed(across)
    assert [len(keys) for keys in shards] == [4, 4, 3]
    whole = ShardDataset.open(across, "train")
    pixels = {sample.key: sample for sample in map(whole.sample_at, range(len(whole)))}
    assert sorted(pixels) == sorted(key for keys in shards for key in keys)
    for view, held_out in zip(open_splits(across, CONFIG), (False, True), strict=True):
        theirs = [[key for key in keys if is_theirs(key) == held_out] for keys in shards]
        assert view.counts.tolist() == [len(keys) for keys in theirs]
        assert view.keys() == [key for keys in theirs for key in keys]
        assert len(view) == sum(view.counts)
        assert [shard.name for shard in view.shards] == [
            shard.name for shard, keys in zip(whole.split.shards, theirs, strict=True) if keys
        ]
        for index, key in enumerate(view.keys()):
            sample = view.sample_at(index)
            assert sample.key == key
            assert np.array_equal(sample.image_HW3, pixels[key].image_HW3)
            assert np.array_equal(sample.label_HW, pixels[key].label_HW)
        with pytest.raises(IndexError):
            view.sample_at(len(view))


def test_the_order_is_that_of_shards_from_which_the_drives_were_taken_out(packed, tmp_path):
    root = tmp_path / "without"
    shutil.copytree(packed, root)
    manifest = load_manifest(packed)
    shards = list(manifest.splits["train"].shards)
    assert [set(map(is_theirs, keys)) for keys in listed(packed)] == [{False}, {True}, {False}, {True}]
    for at in (1, 3):  # the shards that hold nothing but city1, and city3
        name = f"train/empty-{at}.tar"
        Path(root, name).write_bytes(EMPTY_TAR)
        Path(root, f"train/empty-{at}.index.jsonl").write_bytes(b"")
        shards[at] = ShardEntry(name, 0, len(EMPTY_TAR), sha256_hex(EMPTY_TAR), sha256_hex(b""))
    splits = {"train": Split("train", ShardTable(shards))}
    (root / "manifest.json").write_text(manifest_text(make_manifest(manifest.classes, splits)))
    expected = read(ShardDataset.open(str(root), "train"), World(), 4, 3, 8)
    training, _ = open_splits(packed, CONFIG)
    assert read(training, World(), 4, 3, 8) == expected


LEGS = st.lists(st.tuples(st.sampled_from([1, 2, 3, 6]), st.integers(1, 3)), min_size=1, max_size=4)


@settings(max_examples=10)
@example(start=4, workers=2, legs=[(2, 2), (1, 1)])
@given(start=st.integers(0, 20), workers=st.just(0), legs=LEGS)
def test_what_is_trained_on_comes_once_an_epoch_whatever_the_chain_of_resumes(across, start, workers, legs):
    training, _ = open_splits(across, CONFIG)
    rest = [key for keys in listed(across) for key in keys if not is_theirs(key)]
    position, samples = start, []
    for size, steps in legs:
        for rank in range(size):
            samples += read(training, World(rank, size), 6 // size, position, steps, workers)
        position += 6 * steps
    assert sorted(samples) == read(training, World(), 6, start, sum(steps for _, steps in legs))
    assert sorted(place for place, *_ in samples) == list(range(start, position))
    for epoch in range(start // len(rest), position // len(rest) + 1):
        keys = Counter(key for place, key, *_ in samples if place // len(rest) == epoch)
        assert keys <= Counter(rest)
        if start <= epoch * len(rest) and (epoch + 1) * len(rest) <= position:
            assert keys == Counter(rest)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_evaluation_sees_each_sample_of_the_drives_once_and_no_other(across, size, workers):
    _, held_out = open_splits(across, CONFIG)
    seen = [
        sample.key
        for rank in range(size)
        for sample in EvalLoader(held_out, 20, 30, World(rank, size), workers, group=2)
    ]
    assert seen == [key for keys in listed(across) for key in keys if is_theirs(key)]


def test_a_position_is_not_gone_on_with_when_other_drives_are_held_out(across):
    def order(held_out: str):
        config = replace(CONFIG, held_out=held_out)
        return TrainLoader(open_splits(across, config)[0], config, SEED, World(), 2).order()

    assert "held_out" not in order("")
    TrainLoader.refuse_other_order(order("city1"), order("city1"))
    for before, now in (("", "city1"), ("city1", ""), ("city0", "city1")):
        with pytest.raises(CheckpointError, match="made with held_out = "):
            TrainLoader.refuse_other_order(order(before), order(now))


def test_decoded_samples_are_shared_by_runs_that_hold_out_other_drives(across, tmp_path):
    cache = str(tmp_path / "cache")
    whole = ShardDataset.open(across, "train")
    reader = whole.reader(cache)
    for index in range(len(whole)):
        reader.read(whole.ref(*whole.locate(index)))
    for view in open_splits(across, CONFIG):
        reader = view.reader(cache)
        for index in range(len(view)):
            sample, expected = reader.read(view.ref(*view.locate(index))), view.sample_at(index)
            assert sample.key == expected.key
            assert np.array_equal(sample.image_HW3, expected.image_HW3)
            assert np.array_equal(sample.label_HW, expected.label_HW)


def test_no_shard_is_brought_for_training_that_holds_nothing_but_the_drives(packed):
    training, held_out = open_splits(packed, CONFIG)
    assert sorted(shard.name for shard in first_shards(training, CONFIG, SEED, 2, range(50))) == [
        "train/train-000000.tar",
        "train/train-000002.tar",
    ]
    assert [shard.name for shard in held_out.shards] == ["train/train-000001.tar", "train/train-000003.tar"]


def test_without_drives_held_out_the_splits_are_whole(across):
    training, validation = open_splits(across, replace(CONFIG, held_out=""))
    assert (training.split.name, training.part, len(training)) == ("train", None, 11)
    assert (validation.split.name, validation.part, len(validation)) == ("val", None, 5)


@pytest.mark.parametrize(
    ("held_out", "message"),
    [
        ("city11", r"--data\.held_out city11: no sample of split train is of that drive "
                   r"\(did you mean city1\?\); its drives \(samples\) are city0 \(3\), city1 \(3\), "
                   r"city2 \(3\), city3 \(2\)$"),
        ("city0,cit", "--data.held_out cit: no sample of split train is of that drive"),
        ("city0,city1,city2,city3", "takes all 11 samples of split train and leaves none to train on"),
    ],
)  # fmt: skip
def test_drives_that_do_not_exist_or_are_all_are_one_line_with_those_that_are(across, held_out, message):
    with pytest.raises(ConfigError, match=message) as caught:
        open_splits(across, replace(CONFIG, held_out=held_out))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("held_out", [",", "a,", "a,,b", "a, b", "a,a", " "])
def test_names_of_drives_are_joined_by_commas_alone(held_out):
    with pytest.raises(ConfigError, match="joined by commas"):
        DataConfig(held_out=held_out)
