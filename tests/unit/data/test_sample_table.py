"""Samples as columns are the samples they were made of."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.index import CODECS, Member, SampleEntry
from pipeline.data.sample_table import SampleTable

COUNTS = st.integers(0, 2**53)
MEMBERS = st.builds(Member, st.sampled_from(CODECS), COUNTS, COUNTS, st.integers(0, 2**32 - 1))
KEYS = st.text(st.characters(codec="utf-8"), min_size=1)
ENTRIES = st.lists(st.builds(SampleEntry, KEYS, COUNTS, COUNTS, MEMBERS, MEMBERS))


@given(ENTRIES, st.slices(5))
def test_a_table_is_the_sequence_that_it_was_made_of(entries, part):
    table = SampleTable(entries)
    assert len(table) == len(entries)
    assert list(table) == entries
    assert table[part] == tuple(entries[part])
    for index in range(-len(entries), len(entries)):
        assert table[index] == entries[index]
    for index in (len(entries), -len(entries) - 1):
        with pytest.raises(IndexError):
            table[index]


def test_a_sample_takes_less_than_150_bytes():
    member = Member("png", 10**9, 10**6, 2**31)
    entries = [SampleEntry(f"city/city_{n:06d}_000019", 1024, 2048, member, member) for n in range(10_000)]
    tracemalloc.start()
    table = SampleTable(entries)
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held_bytes < 150 * len(table)
