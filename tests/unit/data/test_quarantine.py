"""Quarantine: a damaged sample costs nothing but itself, is noted once, and too many end the run."""

import json
import logging
import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import DataConfig, StoreConfig
from pipeline.data.augment import IDENTITY_34, PAD_RGB, CropBuffers, augment
from pipeline.data.dataset import ShardDataset
from pipeline.data.quarantine import (
    FILE_NAME,
    Quarantine,
    num_quarantined,
    quarantine_limit,
    quarantined_crop,
    read_crop,
)
from pipeline.errors import SampleError, ShardError
from tests.rclone_server import serving

CONFIG = DataConfig(input_height=32, input_width=48, crop_height=24, crop_width=40)


def buffers():
    return CropBuffers(np.empty((24, 40, 3), np.uint8), np.empty((24, 40), np.uint8))


def damage(root: str, dataset: ShardDataset, index: int, kind: str = "image") -> str:
    """Flips a bit in the middle of a member; returns the sample's key."""
    shard, sample = dataset.locate(index)
    entry = dataset.entry(shard, sample)
    member = getattr(entry, kind)
    path = Path(root, dataset.split.shards[shard].name)
    data = bytearray(path.read_bytes())
    data[member.offset + member.bytes // 2] ^= 16
    path.write_bytes(data)
    return entry.key


@pytest.mark.parametrize(
    ("settings", "samples", "limit"),
    [
        ({}, 10**6, 20), ({}, 5000, 5), ({}, 367, 1), ({}, 1, 1),
        ({"quarantine_max": 0}, 10**6, 0), ({"quarantine_share": 0.0}, 10**6, 0),
        ({"quarantine_max": 3, "quarantine_share": 1.0}, 10, 3),
    ],
)  # fmt: skip
def test_the_smaller_bound_holds_but_one_is_allowed_unless_a_bound_is_zero(settings, samples, limit):
    assert quarantine_limit(DataConfig(**settings), samples) == limit


def test_a_quarantined_crop_is_mean_colour_with_nothing_to_learn_from():
    into = buffers()
    crop = quarantined_crop(into)
    assert (into.image_hw3 == PAD_RGB).all()
    assert (into.label_hw == 255).all()
    assert np.array_equal(crop.colour_34, IDENTITY_34)
    assert crop.inside == (0, 0, 0, 0)


@pytest.mark.parametrize("kind", ["image", "label"])
def test_a_copy_that_went_bad_is_fetched_again_and_gives_the_sound_pixels(own, packed, kind):
    """The store's `drop` mends the file, as a remote store does by a fresh download."""
    dataset, sound = ShardDataset.open(own, "train"), ShardDataset.open(packed, "train")
    damage(own, dataset, 4, kind)
    reader, ref = dataset.reader(), dataset.ref(*dataset.locate(4))
    dropped = []

    def drop(name):
        dropped.append(name)
        Path(own, name).write_bytes(Path(packed, name).read_bytes())

    reader._store.drop = drop
    into, expected = buffers(), buffers()
    crop = read_crop(reader, ref, CONFIG, 0, 99, into)
    other = augment(sound.reader().open(ref), CONFIG, 0, 99, expected)
    assert dropped == [ref.shard.name]
    assert crop.inside == other.inside
    assert np.array_equal(into.image_hw3, expected.image_hw3)
    assert np.array_equal(into.label_hw, expected.label_hw)


def test_a_copy_of_a_remote_shard_that_went_bad_on_this_disk_costs_no_sample(packed, tmp_path):
    with serving("http", Path(packed).parent) as address:
        root = f"http://{address}/{Path(packed).name}"
        dataset = ShardDataset.open(root, "train", StoreConfig(cache_dir=str(tmp_path)))
        ref = dataset.ref(*dataset.locate(4))
        dataset._store.bring(ref.shard)
        (copy,) = tmp_path.glob(f"**/shards/*/*/{ref.shard.sha256}")
        copy.write_bytes(bytes(len(copy.read_bytes())))
        found, sound = buffers(), buffers()
        read_crop(dataset.reader(), ref, CONFIG, 0, 99, found)
        dataset._store.close()
    local = ShardDataset.open(packed, "train")
    augment(local.reader().open(local.ref(*local.locate(4))), CONFIG, 0, 99, sound)
    assert np.array_equal(found.image_hw3, sound.image_hw3)
    assert np.array_equal(found.label_hw, sound.label_hw)


def test_a_sample_that_is_bad_at_its_address_is_given_up_and_its_neighbours_are_not(own, packed, tmp_path):
    damage(own, ShardDataset.open(own, "train"), 4)
    with serving("http", Path(own).parent) as address:
        root = f"http://{address}/{Path(own).name}"
        dataset = ShardDataset.open(root, "train", StoreConfig(cache_dir=str(tmp_path / "cache")))
        reader, refs = dataset.reader(), [dataset.ref(*dataset.locate(index)) for index in (3, 4, 5)]
        with pytest.raises(SampleError, match=rf"image of '{refs[1].entry.key}' at offset"):
            read_crop(reader, refs[1], CONFIG, 0, 99, buffers())
        assert [reader.read(ref).key for ref in (refs[0], refs[2])] == [refs[0].entry.key, refs[2].entry.key]
        dataset._store.close()


def test_a_sample_that_stays_bad_is_read_twice_and_given_up(own):
    dataset = ShardDataset.open(own, "train")
    key = damage(own, dataset, 4, "label")
    reader = dataset.reader()
    dropped = []
    reader._store.drop = dropped.append
    with pytest.raises(SampleError, match=rf"label of '{key}' at offset \d+"):
        read_crop(reader, dataset.ref(*dataset.locate(4)), CONFIG, 0, 99, buffers())
    assert len(dropped) == 1


@pytest.mark.parametrize("gone", ["shard", "store"])
def test_an_absent_shard_is_no_damaged_sample(own, gone):
    dataset = ShardDataset.open(own, "train")
    ref = dataset.ref(*dataset.locate(4))
    Path(own, ref.shard.name).unlink()
    if gone == "store":
        Path(own).rename(own + "-away")
    with pytest.raises(ShardError) as error:
        read_crop(dataset.reader(), ref, CONFIG, 0, 99, buffers())
    assert not isinstance(error.value, SampleError)


def test_samples_behind_the_end_of_a_truncated_shard_are_damaged_and_those_before_are_not(own, packed):
    dataset = ShardDataset.open(own, "train")
    last = dataset.ref(0, 2)
    path = Path(own, last.shard.name)
    path.write_bytes(path.read_bytes()[: last.entry.image.offset + 100])
    sound = ShardDataset.open(packed, "train")
    for sample in (0, 1):
        assert np.array_equal(dataset.read(0, sample).image_HW3, sound.read(0, sample).image_HW3)
    with pytest.raises(SampleError, match=rf"is truncated: .*'{last.entry.key}' at offset"):
        dataset.read(0, 2)


def test_each_sample_is_noted_once_and_counted_once_over_ranks_epochs_and_attempts(tmp_path, caplog):
    first, second = (Quarantine(tmp_path, 9, counts_earlier=rank == 0) for rank in (0, 1))
    with caplog.at_level(logging.WARNING):
        first.note(5, "train/a.tar", "k1", "crc32 differs")
        first.note(16, "train/a.tar", "k1", "crc32 differs")
        second.note(27, "train/a.tar", "k1", "crc32 differs")
        second.note(6, "train/b.tar", "k1", 'cut, with a "quote" and ü')
    assert first.count + second.count == num_quarantined(tmp_path) == 2
    lines = [json.loads(line) for line in (tmp_path / FILE_NAME).read_text().splitlines()]
    assert lines == [
        {"key": "k1", "shard": "train/a.tar", "error": "crc32 differs"},
        {"key": "k1", "shard": "train/b.tar", "error": 'cut, with a "quote" and ü'},
    ]
    assert [r.getMessage().split(":")[0] for r in caplog.records] == [
        "[event] quarantined 'k1' at position 5", "[event] quarantined 'k1' at position 6",
    ]  # fmt: skip
    again = [Quarantine(tmp_path, 9, counts_earlier=rank == 0) for rank in (0, 1)]
    again[1].note(99, "train/b.tar", "k1", "cut")
    assert [q.count for q in again] == [2, 0]


def test_ranks_that_append_at_once_leave_whole_lines(tmp_path):
    notes = [Quarantine(tmp_path, 9, counts_earlier=False) for _ in range(4)]

    def work(rank):
        for n in range(30):
            notes[rank].note(n, f"train/{rank}.tar", f"k{n}", "e" * 300)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    lines = filter(None, (tmp_path / FILE_NAME).read_text().splitlines())
    assert len([json.loads(line) for line in lines]) == 120
    assert sum(q.count for q in notes) == num_quarantined(tmp_path) == 120


def test_a_line_cut_by_a_lost_machine_costs_that_line_alone(tmp_path):
    (tmp_path / FILE_NAME).write_text('{"key": "a", "shard": "s", "error": "e"}\n{"key": "b", "sh')
    quarantine = Quarantine(tmp_path, 9, counts_earlier=True)
    quarantine.note(1, "s", "c", "e")
    assert num_quarantined(tmp_path) == 2


def test_above_the_limit_the_error_names_the_file_and_the_last_sample(tmp_path):
    quarantine = Quarantine(tmp_path, 1, counts_earlier=True)
    quarantine.note(1, "train/a.tar", "k1", "e")
    quarantine.refuse_above_limit(1)
    quarantine.note(2, "train/b.tar", "k2", "e")
    with pytest.raises(ShardError) as error:
        quarantine.refuse_above_limit(2)
    for part in (
        str(tmp_path / FILE_NAME),
        "'k2' of train/b.tar",
        "2 damaged samples",
        "--data.quarantine_max",
    ):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
