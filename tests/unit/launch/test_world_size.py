"""Which world an attempt takes, and that fewer ranks take the same batches in micro-batches no larger."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.launch.world_size import (
    WorldRange,
    at_world_size,
    choose_world_size,
    read_workers,
    refuse_range_of_exact,
)
from pipeline.settings import config_hash, with_settings

ranges = st.tuples(st.integers(1, 12), st.integers(0, 12)).map(lambda t: WorldRange(t[0], t[0] + t[1]))


def config(batch: int, accumulation: int = 1) -> Config:
    return with_settings(Config(), {"train.batch_global": batch, "train.accumulation": accumulation})


@pytest.mark.parametrize(
    ("typed", "expected"),
    [(None, None), ("4", WorldRange(4, 4)), ("2:8", WorldRange(2, 8)), ("3:3", WorldRange(3, 3))],
)
def test_number_of_workers_is_exact_or_a_range(typed: str | None, expected: WorldRange | None) -> None:
    assert read_workers(typed) == expected


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("0", "must be at least 1"), ("0:4", "must be at least 1"), ("8:2", "must not be fewer"),
        ("two", "takes a number"), ("1:", "takes a number"), ("-1", "takes a number"), ("1:2:3", "takes a"),
        ("1-4", "takes a number"), ("", "takes a number"),
    ],
)  # fmt: skip
def test_other_words_for_workers_are_refused(typed: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_workers(typed)


@given(batch=st.integers(1, 48), world=ranges, fits=st.integers(0, 30))
def test_world_is_the_largest_that_fits_and_divides_the_batch(
    batch: int, world: WorldRange, fits: int
) -> None:
    possible = [n for n in range(1, 31) if world.least <= n <= world.most and n <= fits and batch % n == 0]
    assert choose_world_size(config(batch), world, fits) == max(possible, default=None)


@given(batch=st.integers(1, 48), accumulation=st.integers(1, 4), world=ranges)
def test_fewer_ranks_take_the_same_batch_in_the_fewest_micro_batches_that_are_no_larger(
    batch: int, accumulation: int, world: WorldRange
) -> None:
    settings = config(batch, accumulation)
    largest = choose_world_size(settings, world, world.most)
    if largest is None or batch % (largest * accumulation):
        with pytest.raises(ConfigError, match=r"try --train\.batch_global"):
            at_world_size(settings, world, world.least)
        return
    most_samples = batch // (largest * accumulation)
    for size in range(world.least, largest + 1):
        if batch % size:
            continue
        train = at_world_size(settings, world, size).train
        assert train.batch_global == batch
        possible = [
            n for n in range(1, 49) if batch % (size * n) == 0 and batch // (size * n) <= most_samples
        ]
        assert train.accumulation == (accumulation if size == largest else min(possible))


def test_largest_world_changes_no_setting_and_a_smaller_one_the_accumulation_alone() -> None:
    settings, world = config(16, 2), WorldRange(1, 4)
    assert at_world_size(settings, world, 4) == settings
    smaller = at_world_size(settings, world, 2)
    assert smaller == config(16, 4), "four micro-batches of two samples, as on four ranks"
    assert config_hash(smaller) != config_hash(settings)


def test_virtual_shards_decide_which_worlds_are_admissible_and_part_themselves() -> None:
    elastic = with_settings(config(24), {"train.determinism": "elastic", "train.virtual_shards": 8})
    assert choose_world_size(elastic, WorldRange(1, 6), 6) == 4  # 6 divides the batch, and not the shards
    assert at_world_size(elastic, WorldRange(1, 4), 2) == elastic
    assert elastic.train.micro_batches_per_rank(2) == 4


def test_exact_bits_and_a_range_of_workers_contradict_each_other() -> None:
    exact = with_settings(config(8), {"train.determinism": "exact"})
    with pytest.raises(ConfigError, match="type --workers 4, or"):
        refuse_range_of_exact(exact, WorldRange(2, 4))
    refuse_range_of_exact(exact, WorldRange(4, 4))
    refuse_range_of_exact(config(8), WorldRange(2, 4))
