"""Training batches: the same pixels for any number of workers and any chain of resumes."""

import dataclasses
import json
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.config import DataConfig
from pipeline.data import loader as loader_module
from pipeline.data.augment import CropBuffers, augment, colour_in_place
from pipeline.data.dataset import ShardDataset
from pipeline.data.loader import TrainLoader
from pipeline.data.plan import EpochPlan, StepParts, rank_positions
from pipeline.errors import CheckpointError, ShardError
from pipeline.world import World

CONFIG = DataConfig(
    input_height=32, input_width=48, crop_height=24, crop_width=40, streams=3, block=4, prefetch=2
)
SEED = 11
ALONE = World()


def loader(packed: str, world: World = ALONE, batch: int = 3, **changes) -> TrainLoader:
    config = dataclasses.replace(CONFIG, **changes)
    return TrainLoader(ShardDataset.open(packed, "train"), config, SEED, world, batch)


def take(made: TrainLoader, position: int, count: int):
    batches = made.batches(position)
    got = [next(batches) for _ in range(count)]
    batches.close()
    return got


def by_position(batches) -> dict[int, tuple[str, bytes, bytes]]:
    return {
        position: (key, image.tobytes(), label.tobytes())
        for batch in batches
        for position, key, image, label in zip(
            batch.positions, batch.keys, batch.image_BHW3, batch.label_BHW, strict=True
        )
    }


def test_batches_are_what_plan_read_and_augment_say(packed):
    dataset = ShardDataset.open(packed, "train")
    plan = EpochPlan(dataset.split.counts, SEED, CONFIG.streams, CONFIG.block)
    world, start, batch_per_rank = World(1, 2), 5, 3
    for m, batch in enumerate(take(loader(packed, world), start, 6)):
        assert batch.image_BHW3.shape == (3, 24, 40, 3)
        assert batch.label_BHW.shape == (3, 24, 40)
        assert batch.image_BHW3.dtype == batch.label_BHW.dtype == np.uint8
        for j in range(batch_per_rank):
            position = int(rank_positions(start + m * 6, world, batch_per_rank, plan.num_streams)[j])
            _, shard, sample = plan.at([position])[0].tolist()
            read = dataset.read(shard, sample)
            image, label = np.empty((24, 40, 3), np.uint8), np.empty((24, 40), np.uint8)
            source = dataset.reader().open(dataset.ref(shard, sample))
            crop = augment(source, CONFIG, SEED, position, CropBuffers(image, label))
            colour_in_place(image, crop.colour_34, crop.inside)
            assert batch.positions[j] == position
            assert batch.keys[j] == read.key
            assert np.array_equal(batch.image_BHW3[j], image)
            assert np.array_equal(batch.label_BHW[j], label)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_pixels_are_the_same_for_any_number_of_workers(packed, workers):
    alone = by_position(take(loader(packed), 0, 9))
    assert by_position(take(loader(packed, loader_workers=workers), 0, 9)) == alone


def test_pixels_are_the_same_after_any_chain_of_resumes_at_other_worlds(packed):
    whole = by_position(take(loader(packed, batch=6), 0, 8))
    position, chained = 0, {}
    for size, steps, workers in ((1, 2, 0), (3, 2, 2), (2, 3, 1), (6, 1, 0)):
        batch = 6 // size
        for rank in range(size):
            part = by_position(take(loader(packed, World(rank, size), batch, loader_workers=workers),
                                    position, steps))  # fmt: skip
            assert len(part) == batch * steps
            assert not part.keys() & chained.keys()
            chained |= part
        position += size * batch * steps
    assert position == 48
    assert chained == whole


def test_each_sample_comes_once_an_epoch_across_batches_that_cross_its_border(packed):
    keys = [key for batch in take(loader(packed, batch=4), 0, 11) for key in batch.keys]  # 4 epochs of 11
    for epoch in range(4):
        assert len(set(keys[11 * epoch : 11 * (epoch + 1)])) == 11


@pytest.mark.parametrize("workers", [0, 2])
def test_closing_the_generator_ends_its_processes_and_lets_go_of_the_memory(packed, workers):
    before, others = descriptors(), set(psutil.Process().children())  # multiprocessing's tracker stays
    threads = set(threading.enumerate())
    batches = loader(packed, loader_workers=workers).batches(0)
    next(batches)
    assert len(set(psutil.Process().children()) - others) == workers
    assert set(threading.enumerate()) <= threads
    batches.close()
    assert set(psutil.Process().children()) <= others
    assert "loader-slots" not in Path("/proc/self/maps").read_text()
    assert descriptors() - before <= {"shard"}


def descriptors() -> set[str]:
    """What is open here: the file of each descriptor, shards by one name."""
    names = {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    return {"shard" if name.endswith(".tar") else name for name in names if not name.startswith("/proc/")}


@pytest.mark.parametrize("workers", [0, 3])
def test_a_damaged_sample_stops_the_loader_at_its_turn(own, workers):
    threads = set(threading.enumerate())
    made = loader(own, batch=1, loader_workers=workers)
    dataset = ShardDataset.open(own, "train")
    shard, sample = EpochPlan(dataset.split.counts, SEED, 3, 4).at([4])[0, 1:].tolist()
    flip_bit(f"{own}/{dataset.split.shards[shard].name}", dataset.entry(shard, sample).image.offset + 9)
    batches = made.batches(0)
    for _ in range(4):
        next(batches)
    with pytest.raises(ShardError, match=r"crc32 differs"):
        next(batches)
    assert set(threading.enumerate()) <= threads


def flip_bit(path: str, offset: int) -> None:
    with open(path, "r+b") as file:  # noqa: PTH123 - a path in a string
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


def test_positions_go_on_across_look_ups(packed, monkeypatch):
    monkeypatch.setattr(loader_module, "_LOOKUP", 4)
    world = World(1, 3)
    for m, batch in enumerate(take(loader(packed, world), 7, 5)):
        assert list(batch.positions) == rank_positions(7 + m * 9, world, 3, CONFIG.streams).tolist()


def test_order_is_json_and_refuses_another(packed):
    order = loader(packed).order()
    assert json.loads(json.dumps(order)) == order
    TrainLoader.refuse_other_order(order, loader(packed, loader_workers=2).order())
    TrainLoader.refuse_other_order(order, loader(packed, World(1, 3), batch=1).order())
    with pytest.raises(CheckpointError, match=r"plan\.block = 4, this run has 5"):
        TrainLoader.refuse_other_order(order, loader(packed, block=5).order())
    with pytest.raises(CheckpointError, match=r"augment\.crop_width"):
        TrainLoader.refuse_other_order(order, loader(packed, crop_width=41).order())
    with pytest.raises(CheckpointError, match=r"manifest_id = 'other'"):
        TrainLoader.refuse_other_order(order | {"manifest_id": "other"}, order)
    with pytest.raises(CheckpointError, match=r"split = None"):
        TrainLoader.refuse_other_order({k: v for k, v in order.items() if k != "split"}, order)


def test_a_virtual_shard_holds_the_same_samples_whoever_reads_it(packed):
    dataset = ShardDataset.open(packed, "train")

    def shards(size: int, steps: int) -> list:
        """The positions of the 12 virtual shards of each step, dealt to `size` ranks."""
        micro, by_rank = 12 // size, []
        for rank in range(size):
            made = TrainLoader(dataset, CONFIG, SEED, World(rank, size), 2, parts=StepParts(micro, True))
            by_rank.append([batch.positions for batch in take(made, 5, steps * micro)])
        return [
            positions
            for s in range(steps)
            for read in by_rank
            for positions in read[s * micro : (s + 1) * micro]
        ]

    alone = shards(1, 2)
    assert [shards(size, 2) for size in (2, 3, 4, 6, 12)] == [alone] * 5
    assert len(set(alone)) == 24
    for step in (alone[:12], alone[12:]):
        ranks = [rank_positions(min(min(step)), World(part, 12), 2, CONFIG.streams) for part in range(12)]
        assert step == [tuple(positions) for positions in map(np.ndarray.tolist, ranks)]


def test_what_all_ranks_take_at_once_is_the_same_at_any_world_size(packed):
    dataset = ShardDataset.open(packed, "train")

    def together(size: int) -> list:
        read = [
            take(TrainLoader(dataset, CONFIG, SEED, World(rank, size), 12 // size, parts=StepParts(2)), 5, 4)
            for rank in range(size)
        ]
        return [{p for batch in at_once for p in batch.positions} for at_once in zip(*read, strict=True)]

    alone = [set(range(first, first + 12)) for first in range(5, 53, 12)]
    assert [together(size) for size in (1, 2, 3, 4)] == [alone] * 4


def test_the_order_depends_on_what_a_step_reads_and_not_on_how_it_is_parted(packed):
    dataset = ShardDataset.open(packed, "train")
    config = dataclasses.replace(CONFIG, streams=6, block=1)

    def streams(world: World, batch: int, micro_batches: int) -> int:
        loader = TrainLoader(dataset, config, SEED, world, batch, parts=StepParts(micro_batches))
        return loader.order()["plan"]["streams"]

    assert {streams(World(0, 1), 4, 1), streams(World(0, 2), 1, 2), streams(World(0, 1), 1, 4)} == {4}
    assert streams(World(0, 1), 1, 1) == 6
