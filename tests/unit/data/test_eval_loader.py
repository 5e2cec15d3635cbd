"""Evaluation sees each sample once, however many ranks and threads read."""

import threading
import time

import numpy as np
import pytest

from pipeline.data.dataset import ShardDataset
from pipeline.data.eval_loader import EvalLoader, in_order, resize_input
from pipeline.world import World


def test_results_keep_their_order_and_never_run_further_ahead_than_asked():
    started, lock, gate = [], threading.Lock(), threading.Event()

    def work(item: int) -> int:
        with lock:
            started.append(item)
        if item == 0:
            gate.wait(10)  # the first is the slowest
        return item * item

    results = in_order(work, iter(range(100)), workers=3, ahead=5)
    threading.Timer(0.2, gate.set).start()
    assert next(results) == 0
    assert max(started) <= 5
    taken = [0] + [next(results) for _ in range(30)]
    time.sleep(0.05)  # every worker has had time to run as far ahead as it may
    assert max(started) <= 30 + 5
    assert taken + list(results) == [item * item for item in range(100)]


@pytest.mark.parametrize("group", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_a_picture_has_the_same_neighbours_in_its_batch_on_any_number_of_ranks(packed, size, group):
    dataset = ShardDataset.open(packed, "val")
    slices = [EvalLoader(dataset, 8, 8, World(rank, size), group=group)._indexes for rank in range(size)]
    batches = [list(part[i : i + group]) for part in slices for i in range(0, len(part), group)]
    indexes = list(range(len(dataset)))
    assert batches == [indexes[i : i + group] for i in range(0, len(indexes), group)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_evaluation_sees_each_sample_once_however_many_ranks(packed, size, workers):
    dataset = ShardDataset.open(packed, "val")
    ranks = [EvalLoader(dataset, 20, 30, World(rank, size), workers) for rank in range(size)]
    seen = [list(rank) for rank in ranks]
    assert [len(rank) for rank in ranks] == [len(samples) for samples in seen]
    samples = [sample for part in seen for sample in part]
    assert [sample.index for sample in samples] == list(range(len(dataset)))
    for sample in samples:
        whole = dataset.sample_at(sample.index)
        assert sample.key == whole.key
        assert np.array_equal(sample.label_HW, whole.label_HW)
        assert np.array_equal(sample.image_HW3, resize_input(whole.image_HW3, 20, 30))
        assert sample.image_HW3.shape == (20, 30, 3)
