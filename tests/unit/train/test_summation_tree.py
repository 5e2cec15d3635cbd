"""The tree by which ranks sum: one association for any of them, by brute force over bracketings."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.train.summation_tree import LeafShare, Span, merges_after, sum_leaves, sum_nodes, whole_nodes


def bracketing(begin: int, end: int) -> str:
    """How the leaves are bracketed, written out: the second half is the shorter one."""
    if end - begin == 1:
        return str(begin)
    middle = begin + (end - begin + 1) // 2
    return f"({bracketing(begin, middle)}+{bracketing(middle, end)})"


class Words(list):
    """A sum that knows how it was made: it adds by writing brackets."""

    def add_(self, other):
        return Words([f"({self[0]}+{other[0]})"])


def taken_in_turn(num_leaves: int, begin: int, end: int) -> list[str]:
    """What a rank has in the end that takes its leaves one after the other, as `merges_after` says."""
    aside: list[str] = []
    for leaf, merges in zip(range(begin, end), merges_after(num_leaves, begin, end), strict=True):
        total = str(leaf)
        for _ in range(merges):
            total = f"({aside.pop()}+{total})"
        aside.append(total)
    return aside


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 64))
def test_ranks_that_sum_their_leaves_in_turn_bracket_as_one_that_has_all(data, num_leaves):
    size = data.draw(st.sampled_from([n for n in range(1, num_leaves + 1) if num_leaves % n == 0]))
    shares = [LeafShare(num_leaves, rank, size) for rank in range(size)]
    sums = {}
    for share in shares:
        begin = share.rank * share.per_rank
        nodes = share.nodes()[share.rank]
        held = taken_in_turn(num_leaves, begin, begin + share.per_rank)
        assert share.merges() == merges_after(num_leaves, begin, begin + share.per_rank)
        assert held == [bracketing(*node) for node in nodes]
        sums |= {node: Words([words]) for node, words in zip(nodes, held, strict=True)}
    assert sum_nodes(sums, num_leaves) == [bracketing(0, num_leaves)]


@given(st.data(), st.integers(1, 64))
def test_whole_nodes_part_a_range_into_the_fewest_nodes(data, num_leaves):
    begin = data.draw(st.integers(0, num_leaves - 1))
    end = data.draw(st.integers(begin + 1, num_leaves))
    nodes = whole_nodes(num_leaves, begin, end)
    assert [leaf for node in nodes for leaf in range(node.begin, node.end)] == list(range(begin, end))
    every = all_nodes(Span(0, num_leaves))
    assert set(nodes) <= every
    inside = {node for node in every if begin <= node.begin and node.end <= end}
    assert all(any(outer.begin <= n.begin and n.end <= outer.end for outer in nodes) for n in inside)
    if num_leaves & (num_leaves - 1) == 0 and num_leaves % (end - begin) == 0 and begin % (end - begin) == 0:
        assert len(nodes) == 1  # one sum a rank travels, at 1, 2, 4, … of them


def all_nodes(node: Span) -> set[Span]:
    return {node} if node.end - node.begin == 1 else {node}.union(*map(all_nodes, node.halves()))


def test_the_order_matters_to_these_numbers_and_the_tree_keeps_it():
    generator = torch.Generator().manual_seed(0)
    leaves = torch.randn(7, 1000, generator=generator)
    before = leaves.clone()
    ((a, b), (c, d)), ((e, f), g) = leaves[:4].reshape(2, 2, -1), (leaves[4:6], leaves[6])
    assert torch.equal(sum_leaves(leaves), ((a + b) + (c + d)) + ((e + f) + g))
    assert not torch.equal(sum_leaves(leaves), sum(leaves[1:], leaves[0]))
    assert torch.equal(leaves, before)


def test_shares_are_equal_or_refused():
    with pytest.raises(AssertionError):
        LeafShare(8, 0, 3)
