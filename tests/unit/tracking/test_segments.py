"""Journals as segments: what is sent of them, and whether a copy's are those of the store."""

from pathlib import Path

import pytest

from pipeline.tracking.segments import Segment, continues, num_lines_beyond, seal_of, segments_of, unshipped

STEM = "journal/0001-0001-ab"
OPEN, FIRST, SECOND = f"{STEM}/000000.jsonl", f"{STEM}/000001.jsonl", f"{STEM}/000002.jsonl"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "journal").mkdir()
    (tmp_path / f"{STEM}.jsonl").write_bytes(b"one\ntwo\nto")
    return tmp_path


def test_a_journal_is_announced_before_its_first_lines_and_torn_ones_wait(run_dir: Path) -> None:
    assert unshipped(run_dir, {}) == [Segment(OPEN, b""), Segment(FIRST, b"one\ntwo\n")]
    assert unshipped(run_dir, {OPEN: 0}) == [Segment(FIRST, b"one\ntwo\n")]
    assert unshipped(run_dir, {OPEN: 0, FIRST: 4}) == [Segment(SECOND, b"two\n")]
    assert unshipped(run_dir, {OPEN: 0, FIRST: 8}) == []


def test_nothing_is_sent_of_a_journal_that_is_over(run_dir: Path) -> None:
    shipped = {OPEN: 0, FIRST: 4, SECOND: 0}
    assert unshipped(run_dir, shipped) == []
    assert num_lines_beyond(run_dir, shipped) == 1
    assert seal_of("0001-0001-ab", shipped) is None


def test_a_journal_of_which_no_line_came_can_be_ended(run_dir: Path) -> None:
    assert seal_of("0001-0001-ab", {OPEN: 0}) == FIRST
    assert seal_of("0001-0001-ab", {OPEN: 0, FIRST: 0}) is None
    assert segments_of({OPEN: 0, FIRST: 0}) == {}


@pytest.mark.parametrize(
    ("shipped", "does"),
    [
        ({}, True),
        ({OPEN: 0}, True),
        ({OPEN: 0, FIRST: 4}, True),
        ({OPEN: 0, FIRST: 4, SECOND: 0}, False),  # ended by another, without the second line
        ({OPEN: 0, FIRST: 11}, False),  # more than there is here
        ({OPEN: 0, FIRST: 10, SECOND: 0}, True),
        ({"journal/0002-0001-ab/000001.jsonl": 4}, False),  # of a journal that is not here
    ],
)
def test_a_copy_continues_what_it_has_all_of(shipped: dict[str, int], does: bool, run_dir: Path) -> None:
    assert continues(run_dir, shipped) is does
