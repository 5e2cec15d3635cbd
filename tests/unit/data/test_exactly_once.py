"""The promise of the data plane, by real shards and the real loader: any shards (empty ones too), streams,
blocks, batch, accumulation, workers, and any chain of stops and elastic resumes give every sample exactly
once an epoch, in equal batches, with the pixels that one rank without workers reads.
"""

import shutil
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import DataConfig
from pipeline.data.dataset import ShardDataset
from pipeline.data.loader import WHOLE_STEPS, TrainLoader
from pipeline.data.manifest import Split, load_manifest, make_manifest, manifest_text
from pipeline.data.packing.parallel import in_turn
from pipeline.data.packing.verify import verify_shards
from pipeline.data.plan import StepParts
from pipeline.data.shard_table import ShardEntry, ShardTable, sha256_hex
from pipeline.world import World

SEED = 23
SAMPLES = 11
EMPTY_TAR = bytes(10240)


@pytest.fixture(scope="module")
def dataset(packed, tmp_path_factory) -> ShardDataset:
    """Shards of 3, 3, 3 and 2 samples, with empty ones before, between and after."""
    root = tmp_path_factory.mktemp("with_empty") / "shards"
    shutil.copytree(packed, root)
    manifest = load_manifest(str(root))
    shards = list(manifest.splits["train"].shards)
    for place in (4, 2, 2, 0):
        name = f"train/empty-{len(shards)}.tar"
        Path(root, name).write_bytes(EMPTY_TAR)
        Path(root, name.replace(".tar", ".index.jsonl")).write_bytes(b"")
        entry = ShardEntry(name, 0, len(EMPTY_TAR), sha256_hex(EMPTY_TAR), sha256_hex(b""))
        shards.insert(place, entry)
    splits = {"train": Split("train", ShardTable(shards))}
    (root / "manifest.json").write_text(manifest_text(make_manifest(manifest.classes, splits)))
    found = ShardDataset.open(str(root), "train")
    assert not any(shard.problems for shard in verify_shards(str(root), ["train"], True, in_turn))
    assert found.split.counts.tolist() == [0, 3, 3, 0, 0, 3, 2, 0]
    return found


def config(streams: int, block: int, workers: int = 0) -> DataConfig:
    return DataConfig(
        input_height=32, input_width=48, crop_height=16, crop_width=24,
        streams=streams, block=block, loader_workers=workers, prefetch=2,
    )  # fmt: skip


def read(dataset: ShardDataset, how: DataConfig, world: World, batch: int, position: int, batches: int, *,
         parts: StepParts = WHOLE_STEPS):  # fmt: skip
    """(position, key, pixels) of each sample, after a check of the batches' size."""
    made = TrainLoader(dataset, how, SEED, world, batch, parts=parts).batches(position)
    samples = []
    for got in islice(made, batches):
        assert got.image_BHW3.shape == (batch, 16, 24, 3)
        assert got.label_BHW.shape == (batch, 16, 24)
        assert len(got.positions) == len(got.keys) == batch
        images, labels = map(bytes, got.image_BHW3), map(bytes, got.label_BHW)
        samples += zip(got.positions, got.keys, images, labels, strict=True)
    made.close()
    return samples


def chain(dataset: ShardDataset, how, batch_global: int, start: int, legs) -> list:
    """What all ranks of each leg read, one leg after the other.

    Legs are (world size, how a step is parted, steps, workers).
    """
    position, samples = start, []
    for size, parts, steps, workers in legs:
        micro = parts.micro_batches
        for rank in range(size):
            samples += read(dataset, config(*how, workers), World(rank, size), batch_global // (size * micro),
                            position, steps * micro, parts=parts)  # fmt: skip
        position += steps * batch_global
    return samples


def check(dataset: ShardDataset, how, batch_global: int, start: int, legs) -> None:
    samples = chain(dataset, how, batch_global, start, legs)
    num_batches = sum(steps for _, _, steps, _ in legs)
    end = start + num_batches * batch_global
    assert sorted(position for position, *_ in samples) == list(range(start, end))
    for epoch in range(-(-start // SAMPLES), end // SAMPLES):  # the whole ones
        keys = [key for position, key, *_ in samples if position // SAMPLES == epoch]
        assert len(keys) == len(set(keys)) == SAMPLES
    for epoch in (start // SAMPLES, end // SAMPLES):  # the others have no sample twice
        counted = Counter(key for position, key, *_ in samples if position // SAMPLES == epoch)
        assert not counted or max(counted.values()) == 1
    alone = read(dataset, config(*how), World(), batch_global, start, num_batches)
    assert sorted(samples) == alone


def legs_of(batch_global: int, workers: st.SearchStrategy[int], most: int, legs: int):
    """Worlds and micro-batches, virtual shards or not, that part the batch equally."""
    sizes = [size for size in range(1, most + 1) if batch_global % size == 0]
    parts = [
        (size, StepParts(micro, shards))
        for size in sizes
        for micro in range(1, batch_global + 1)
        for shards in (False, True)
        if batch_global % (size * micro) == 0
    ]
    leg = st.tuples(st.sampled_from(parts), st.integers(1, 3), workers).map(lambda leg: (*leg[0], *leg[1:]))
    return st.lists(leg, min_size=1, max_size=legs)


HOW = st.tuples(st.integers(1, 6), st.integers(1, 6))


@settings(max_examples=30, deadline=None)
@given(data=st.data(), how=HOW, batch_global=st.integers(1, 13), start=st.integers(0, 40))
def test_every_sample_comes_once_an_epoch_whatever_the_chain_of_resumes(
    dataset, data, how, batch_global, start
):
    legs = data.draw(legs_of(batch_global, st.just(0), most=13, legs=4))
    check(dataset, how, batch_global, start, legs)


@settings(max_examples=3, deadline=None)
@given(data=st.data(), how=HOW, batch_global=st.sampled_from([2, 4, 6]), start=st.integers(0, 40))
def test_every_sample_comes_once_an_epoch_with_workers_that_change_at_resumes(
    dataset, data, how, batch_global, start
):
    legs = data.draw(legs_of(batch_global, st.integers(0, 3), most=2, legs=2))
    check(dataset, how, batch_global, start, legs)


def test_batches_that_do_not_fit_the_streams_lose_nothing(dataset):
    check(dataset, (5, 1), 7, 3, [(7, WHOLE_STEPS, 4, 0), (1, StepParts(7), 2, 1), (7, WHOLE_STEPS, 3, 0)])
