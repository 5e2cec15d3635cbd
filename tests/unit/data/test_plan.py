"""The order of samples: each exactly once an epoch, for any world and any chain of resumes."""

import hashlib
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.draws import Purpose, permutation, raw_words
from pipeline.data.plan import EpochPlan, fit_streams, rank_positions
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


@given(start=st.integers(0, 10**12), size=st.integers(1, 12), samples=st.integers(1, 12),
       streams=st.integers(1, 40))  # fmt: skip
def test_ranks_part_the_batch_by_stream(start, size, samples, streams):
    batch = range(start, start + size * samples)
    expected = sorted(batch, key=lambda position: (position % streams, position))
    for rank in range(size):
        mine = rank_positions(start, World(rank, size), samples, streams).tolist()
        assert mine == sorted(expected[rank * samples : (rank + 1) * samples])


@pytest.mark.parametrize("streams", [1, 5, 48, 64])
def test_all_ranks_together_have_the_batch_whatever_their_number(streams):
    for size in (1, 2, 3, 4, 6, 8, 12, 24, 48, 96):
        shares = [rank_positions(960, World(rank, size), 96 // size, streams) for rank in range(size)]
        assert sorted(np.concatenate(shares).tolist()) == list(range(960, 960 + 96))


@given(streams=st.integers(1, 200), num_samples=st.integers(1, 10**6), block=st.integers(1, 2000),
       batch=st.integers(1, 5000))  # fmt: skip
def test_fitted_streams_go_into_the_batch_and_cost_at_most_half(streams, num_samples, block, batch):
    most = min(streams, -(-num_samples // block))
    fit = fit_streams(streams, num_samples, block, batch)
    assert fit == most or fit % batch == 0 or batch % fit == 0
    assert most / 2 <= fit <= most
    assert EpochPlan([num_samples], 0, fit, block).num_streams == fit


def test_the_ranks_of_a_node_have_the_part_of_one_rank_as_large():
    for node in range(3):
        ranks = [rank_positions(50, World(rank, 12), 5, 7) for rank in range(4 * node, 4 * node + 4)]
        assert sorted(np.concatenate(ranks).tolist()) == rank_positions(50, World(node, 3), 20, 7).tolist()


RAGGED = np.random.default_rng(5).integers(0, 400, 150)
RAGGED[::17] = 0


@pytest.mark.parametrize("batch_per_rank", [1, 2, 3, 8])
@pytest.mark.parametrize("ranks", [8, 16, 24, 48, 64])
def test_no_two_nodes_read_a_shard_but_for_those_at_their_borders(ranks, batch_per_rank):
    batch, num_nodes = ranks * batch_per_rank, ranks // 8
    n = int(RAGGED.sum())
    streams = fit_streams(64, n, 128, batch)
    plan = EpochPlan(RAGGED, 3, streams, 128)
    assert plan.num_streams == streams
    read: dict[int, set] = {0: set(), 1: set()}
    starts = range(0, 2 * n, batch)  # two epochs, the border of which lies inside a batch
    for node in range(num_nodes):
        shares = [rank_positions(at, World(node, num_nodes), 8 * batch_per_rank, streams) for at in starts]
        for epoch, shard in np.unique(plan.at(np.concatenate(shares))[:, :2], axis=0).tolist():
            if epoch < 2:
                read[epoch].add((node, shard))
    # A node's streams lie side by side, in as many runs as batches fit into the streams.
    borders = 0 if num_nodes == 1 else num_nodes * max(1, streams // batch)
    for pairs in read.values():
        assert len(pairs) <= np.count_nonzero(RAGGED) + borders


@pytest.mark.parametrize("batch", [8, 64, 256])
def test_mixing_is_nearly_that_of_a_uniform_shuffle(batch):
    """Of all pairs in a batch, as few are of one shard, or packed side by side, as chance would have."""
    per_shard, num_shards = 500, 256
    n = per_shard * num_shards
    plan = EpochPlan([per_shard] * num_shards, 1, fit_streams(64, n, 1024, batch))
    rows = plan.at(np.arange(n - n % batch))[:, 1:].reshape(-1, batch, 2)
    pairs = batch * (batch - 1) // 2
    place = np.sort(rows[..., 0] * per_shard + rows[..., 1], axis=1)
    shard = place // per_shard
    same_shard = sum(
        np.count_nonzero(shard[:, gap:] == shard[:, :-gap]) for gap in range(1, batch)
    ) / (len(rows) * pairs)  # fmt: skip
    side_by_side = np.count_nonzero(np.diff(place, axis=1) == 1) / (len(rows) * pairs)
    assert same_shard < 2 * (per_shard - 1) / (n - 1)
    assert side_by_side < 2 * 2 / n


def test_a_cold_start_opens_one_shard_a_stream():
    plan = EpochPlan([1000] * 1000, 0, fit_streams(64, 10**6, 512, 16), 512)
    first = plan.at(rank_positions(0, World(), 16, plan.num_streams))
    assert len(set(first[:, 1].tolist())) <= 16
    node = np.concatenate([rank_positions(16 * k, World(0, 2), 8, plan.num_streams) for k in range(128)])
    streams_of_node = plan.num_streams // 2
    assert len(set(plan.at(node)[:, 1].tolist())) <= 2 * streams_of_node  # a block lies over two shards


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
    lengths = [n // num_streams + (s < n % num_streams) for s in range(num_streams)]
    queues = [line[sum(lengths[:s]) : sum(lengths[: s + 1])] for s in range(num_streams)]
    expected = [queue[turn] for turn in range(n) for queue in queues if turn < len(queue)]
    rows = EpochPlan(counts, 0, streams, block, shuffle=False).at(np.arange(n))
    assert [(shard, sample) for _, shard, sample in rows.tolist()] == expected


GOLDEN = {
    "one shard": (
        ([367], 0, 64, 1024, True),
        "8e8717cb52bb7f39c9ec2f24fc8ff640e53a249a618011eea30917034eccf7d8",
    ),
    "ragged": (
        ([300, 0, 1, 700, 512, 37, 0, 250], 7, 4, 100, True),
        "865e49b49e784cd79131934eb1b125141df14a0429f55e23690a9ad7a11a82b7",
    ),
    "many": (
        ([37] * 1000, -(2**40), 48, 64, True),
        "73833df5f5751bb7ad551113be30a6cbcb4bfb42b9112a2025c7a9ffca6a6d86",
    ),
    "long blocks": (
        ([1000, 999, 0, 5] * 40, 2**64 - 1, 60, 1024, True),
        "b260327d89655271425de9ae04a286ac58a65e616ff8f13c171133f0996ca210",
    ),
    "unshuffled": (
        ([300, 0, 1, 700, 511], 7, 4, 100, False),
        "13deae0f5956a3a16b78a8466662f9ffcc38d1950f4704a2fbcf3622e060ab7e",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_order_is_stable_for_ever(name):
    """The first 10,000 rows, by a hash: another one here means that old checkpoints lose their place."""
    (counts, seed, streams, block, shuffle), expected = GOLDEN[name]
    rows = EpochPlan(counts, seed, streams, block, shuffle).at(np.arange(10_000))
    assert hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest() == expected


def test_parts_of_ranks_and_fits_are_stable_for_ever():
    parts = [rank_positions(start, World(rank, size), 3, streams)
             for start in (0, 1001) for size in (1, 2, 5, 16) for rank in range(size)
             for streams in (1, 7, 48)]  # fmt: skip
    digest = hashlib.sha256(np.concatenate(parts).astype("<i8").tobytes()).hexdigest()
    assert digest == "2431853bf85279c092bb0a0d0feb47c954b0bb21cfc0aba22dac9b6edc1a18eb"
    batches = (1, 4, 12, 16, 24, 48, 64, 96, 97, 192, 256, 320, 768, 8192)
    fits = [64, 64, 60, 64, 48, 48, 64, 48, 64, 48, 64, 40, 48, 64]
    assert [fit_streams(64, 10**6, 1024, batch) for batch in batches] == fits
    assert fit_streams(64, 367, 1024, 8) == 1


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


def test_memory_does_not_grow_with_the_epochs():
    plan = EpochPlan([100] * 200, 0, 16, 256)
    kept = []
    tracemalloc.start()
    for epoch in (1, 2, 3, 20):
        plan.at(np.arange(20_000 * (epoch - 1), 20_000 * epoch))
        kept.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert max(kept[1:]) < 1.1 * kept[1]


def test_a_claim_of_a_billion_samples_plans_in_no_more_memory():
    tracemalloc.start()
    rows = EpochPlan([10**9, 10**9], 0).at(np.arange(2 * 10**9 - 300, 2 * 10**9 + 300))
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()
    assert rows[:300, 0].max() == 0
    assert rows[300:, 0].min() == 1


def test_no_samples_is_refused():
    with pytest.raises(ShardError, match="no samples in 2 shards"):
        EpochPlan([0, 0], seed=0)


def test_a_look_up_costs_no_more_for_a_thousand_times_the_shards():
    def cheapest(shards: int) -> float:
        plan = EpochPlan(np.full(shards, 100), seed=0, streams=4, block=256)
        plan.at(np.arange(64))  # the epoch's one set-up
        taken = []
        for part in range(5):
            begin = time.process_time()
            plan.at(np.arange(1000 * part, 1000 * (part + 1)))
            taken.append(time.process_time() - begin)
        return min(taken)

    assert cheapest(100_000) < 20 * cheapest(100)  # measured 1.1; a wide margin for busy machines
