"""Shards and indexes are on their way before they are due; what is due comes in the plan's order."""

import subprocess
import sys
import threading

import pytest

from pipeline.data.dataset import ShardDataset
from pipeline.data.index import Member, SampleEntry
from pipeline.data.index_cache import IndexCache
from pipeline.data.lookahead import Lookahead, Row
from pipeline.errors import ShardError

SHARDS = [0, 0, 1, 0, 2, 1, 0, 0, 3, 3, 3, 0, 1]
ROWS = [Row(position, shard, 0) for position, shard in enumerate(SHARDS)]


@pytest.mark.parametrize("ahead", [0, 1, 3, 8])
def test_a_shard_is_announced_before_its_first_row_is_less_than_so_many_rows_away(ahead):
    announced: list[int] = []
    rows = Lookahead(iter(ROWS + ROWS), ahead, announced.append)
    for number, row in zip(range(len(ROWS)), rows, strict=False):
        assert row == ROWS[number]
        assert set(SHARDS[: number + 1]) <= set(announced)
        in_view = [row.shard for row in (ROWS + ROWS)[number : number + ahead + 1]]
        assert set(in_view) <= set(announced)


def test_a_shard_is_announced_once_while_in_view_and_again_when_it_comes_back():
    announced: list[int] = []
    rows = Lookahead(iter(ROWS), 3, announced.append)
    taken = [next(rows) for _ in range(10)]
    assert taken == ROWS[:10]
    # 0 is out of view when rows 8 to 10 are near; 1 between its rows 5 and 12.
    assert announced == [0, 1, 2, 3, 0, 1]


def test_what_is_in_view_can_be_announced_again_the_nearest_first():
    announced: list[int] = []
    rows = Lookahead(iter(ROWS), 4, announced.append)
    next(rows)
    announced.clear()
    rows.announce_again()
    assert announced == [0, 1, 2]


def test_an_index_that_was_prefetched_is_loaded_once_and_elsewhere(packed):
    dataset, loaded_by = ShardDataset.open(packed, "train"), []

    def load(shard: int):
        loaded_by.append(threading.current_thread())
        return tuple(dataset.entry(shard, sample) for sample in range(dataset.split.counts[shard]))

    indexes = IndexCache(load)
    for _ in range(3):
        indexes.prefetch(1)
    for _ in range(3):
        assert tuple(indexes.get(1)) == load(1)
        assert loaded_by.pop() is threading.current_thread()
    (thread,) = loaded_by
    assert thread is not threading.current_thread()


def test_a_process_that_ends_does_not_wait_for_indexes_that_are_on_their_way():
    code = """
import threading
from pipeline.data.index_cache import IndexCache
indexes = IndexCache(lambda shard: threading.Event().wait())
for shard in range(20):
    indexes.prefetch(shard)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_error_while_prefetching_is_raised_where_the_index_is_needed_if_it_lasts():
    tries = []

    def load(shard: int):
        tries.append(shard)
        if len(tries) < 3:
            raise ShardError(f"try {len(tries)}")
        return ()

    indexes = IndexCache(load)
    indexes.prefetch(5)
    with pytest.raises(ShardError, match="try 2"):
        indexes.get(5)
    assert tuple(indexes.get(5)) == ()


def test_the_indexes_used_last_are_kept_up_to_a_number_of_samples(packed):
    dataset, loaded = ShardDataset.open(packed, "train"), []

    def load(shard: int):
        loaded.append(shard)
        return (dataset.entry(0, 0),) * 10

    indexes = IndexCache(load, max_samples=25)
    for shard in (0, 1, 0, 2, 0, 1):
        indexes.get(shard)
    assert loaded == [0, 1, 2, 1]


def test_the_indexes_of_sixty_four_streams_of_large_shards_are_loaded_once():
    """Streams take turns, so were there no room for one of them, each sample would cost an index."""
    member, loaded = Member("png", 512, 100, 0), []
    index = [SampleEntry(f"key{number}", 8, 8, member, member) for number in range(4000)]

    def load(shard: int):
        loaded.append(shard)
        return index

    indexes = IndexCache(load)
    for turn in range(3):
        assert {indexes.get(shard)[turn].key for shard in range(64)} == {f"key{turn}"}
    assert loaded == list(range(64))
