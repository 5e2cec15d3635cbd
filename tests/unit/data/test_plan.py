"""The order of samples: each exactly once an epoch, for any world and any chain of resumes."""

import hashlib
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.draws import Purpose, permutation, raw_words
from pipeline.data.plan import EpochPlan, rank_positions
from pipeline.errors import ShardError
from pipeline.world import World

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)
PLANS = {"streams": st.integers(1, 9), "block": st.integers(1, 50), "seed": st.integers(-(2**70), 2**70)}


def every_sample(counts: list[int]) -> list[tuple[int, int]]:
    return [(shard, sample) for shard, count in enumerate(counts) for sample in range(count)]


@given(counts=COUNTS, shuffle=st.booleans(), epoch=st.integers(0, 5), **PLANS)
def test_each_epoch_is_a_bijection(counts, shuffle, epoch, streams, block, seed):
    plan = EpochPlan(counts, seed, streams, block, shuffle)
    n = sum(counts)
    rows = plan.at(np.arange(epoch * n, (epoch + 1) * n))
    assert set(rows[:, 0].tolist()) == {epoch}
    assert sorted((shard, sample) for _, shard, sample in rows.tolist()) == every_sample(counts)


@given(counts=COUNTS, legs=st.lists(st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(0, 9)),
                                    min_size=1, max_size=6), **PLANS)  # fmt: skip
def test_any_chain_of_resumes_at_other_worlds_consumes_the_plan_in_order(counts, legs, streams, block, seed):
    position, consumed = 0, {}
    for world_size, batch_per_rank, steps in legs:
        plan = EpochPlan(counts, seed, streams, block)  # a new process every time
        for _ in range(steps):
            for rank in range(world_size):
                positions = rank_positions(
                    position, World(rank, world_size), batch_per_rank, plan.num_streams
                )
                assert len(positions) == batch_per_rank
                for at, row in zip(positions.tolist(), plan.at(positions).tolist(), strict=True):
                    assert at not in consumed
                    consumed[at] = row
            position += world_size * batch_per_rank
    assert sorted(consumed) == list(range(position))
    n = sum(counts)
    for epoch in range(position // n):
        rows = [consumed[at] for at in range(epoch * n, (epoch + 1) * n)]
        assert {e for e, _, _ in rows} == {epoch}
        assert sorted((shard, sample) for _, shard, sample in rows) == every_sample(counts)


@given(counts=COUNTS, data=st.data(), **PLANS)
def test_positions_are_looked_up_alike_alone_and_together(counts, data, streams, block, seed):
    plan = EpochPlan(counts, seed, streams, block)
    positions = data.draw(st.lists(st.integers(0, 5 * sum(counts)), max_size=30))
    together = plan.at(np.array(positions, np.int64))
    fresh = EpochPlan(counts, seed, streams, block)
    assert together.tolist() == [fresh.at([position])[0].tolist() for position in positions]


@given(counts=COUNTS, streams=st.integers(1, 9), block=st.integers(1, 50))
def test_unshuffled_order_follows_a_plain_loop_over_streams(counts, streams, block):
    line = every_sample(counts)
    n = len(line)
    num_streams = min(streams, -(-n // block))
    queues = [line[s * n // num_streams : (s + 1) * n // num_streams] for s in range(num_streams)]
    expected = [queue[turn] for turn in range(n) for queue in queues if turn < len(queue)]
    rows = EpochPlan(counts, 0, streams, block, shuffle=False).at(np.arange(n))
    assert [(shard, sample) for _, shard, sample in rows.tolist()] == expected


def test_order_is_stable_for_ever():
    counts = [300, 0, 1, 700, 512, 37, 0, 250]
    rows = EpochPlan(counts, seed=7, streams=4, block=100).at(np.arange(4000))
    assert rows[:4].tolist() == GOLDEN_HEAD
    assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() == GOLDEN_HASH


GOLDEN_HEAD = [[0, 3, 98], [0, 3, 464], [0, 4, 247], [0, 0, 188]]
GOLDEN_HASH = "557d3c72d4bbdbd1ec3b952af5d2bb3a7c42531fe480713132fa9cc2dc7e7724"


def test_permutations_break_ties_by_index(monkeypatch):
    keys = np.arange(5000, dtype=np.uint64)[::-1] % np.uint64(3)
    monkeypatch.setattr("pipeline.data.draws.raw_words", lambda *_: keys)
    expected = sorted(range(5000), key=lambda index: (int(keys[index]), index))
    assert permutation(0, Purpose.BLOCK, (0, 0, 0), 5000).tolist() == expected


def test_words_depend_on_every_argument():
    calls = [(0, Purpose.SHARDS, (0, 0, 0)), (1, Purpose.SHARDS, (0, 0, 0)), (0, Purpose.BLOCK, (0, 0, 0)),
             (0, Purpose.BLOCK, (1, 0, 0)), (0, Purpose.BLOCK, (0, 1, 0)), (0, Purpose.BLOCK, (0, 0, 1)),
             (2**64 - 1, Purpose.BLOCK, (0, 0, 1)), (0, Purpose.BLOCK, (2**63 + 1, 0, 0))]  # fmt: skip
    assert len({raw_words(*call, 4).tobytes() for call in calls}) == len(calls)


def test_epochs_and_seeds_differ_in_order():
    counts = [50] * 4
    first, second = EpochPlan(counts, 1).at(np.arange(400))[:, 1:].reshape(2, 200, 2)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, EpochPlan(counts, 2).at(np.arange(200))[:, 1:])


def test_a_small_data_set_is_mixed_uniformly():
    """Each of 20 samples lands in each quarter of the epoch about equally often."""
    plan = EpochPlan([20], seed=3)
    samples = plan.at(np.arange(20 * 400))[:, 2].reshape(400, 4, 5)
    share = np.stack([(samples == sample).any(axis=2).mean(axis=0) for sample in range(20)])
    assert np.abs(share - 0.25).max() < 0.1


def test_no_samples_is_refused():
    with pytest.raises(ShardError, match="no samples in 2 shards"):
        EpochPlan([0, 0], seed=0)


def test_lookup_costs_microseconds_a_sample_for_many_shards():
    plan = EpochPlan(np.full(100_000, 100), seed=0)
    plan.at(np.arange(64))  # the epoch's one set-up
    begin = time.perf_counter()
    plan.at(np.arange(20_000))
    assert (time.perf_counter() - begin) / 20_000 < 100e-6  # measured 0.2; a wide margin for busy machines
