"""One association of a sum, whoever adds: a binary tree over numbered leaves.

Floating-point addition commutes and does not associate, so a sum has the same bits everywhere only
where it is bracketed alike. The tree depends on the number of leaves alone: a node's leaves are a range,
its children the halves of it, the first of them the longer one where they differ. Whoever holds
consecutive leaves adds them up to the largest nodes that are wholly his, and whoever gets all those nodes
adds the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Span(NamedTuple):
    """A node: the leaves from `begin` to before `end`."""

    begin: int
    end: int

    def halves(self) -> tuple[Span, Span]:
        """Its children; it must have two leaves or more."""
        middle = (self.begin + self.end + 1) // 2
        return Span(self.begin, middle), Span(middle, self.end)


def whole_nodes(num_leaves: int, begin: int, end: int) -> list[Span]:
    """The fewest nodes of the tree that make up the leaves from `begin` to before `end`, ascending."""
    return list(_inside(Span(0, num_leaves), begin, end))


def _inside(node: Span, begin: int, end: int) -> Iterator[Span]:
    if begin <= node.begin and node.end <= end:
        yield node
    elif begin < node.end and node.begin < end:
        for half in node.halves():
            yield from _inside(half, begin, end)


def merges_after(num_leaves: int, begin: int, end: int) -> list[int]:
    """How many sums put aside join each leaf, for leaves taken one after the other from `begin` to `end`.

    Whoever adds, to each leaf, so many of the newest sums put aside, and puts the result aside, has in
    the end one sum for each of `whole_nodes`.
    """
    held = [len(whole_nodes(num_leaves, begin, leaf + 1)) for leaf in range(begin, end)]
    return [before + 1 - after for before, after in zip([0, *held], held, strict=False)]


def sum_nodes(sums: Mapping[Span, Tensor], num_leaves: int) -> Tensor:
    """The sum over all leaves, from sums of nodes that make up the tree; they are written over."""

    def at(node: Span) -> Tensor:
        if node in sums:
            return sums[node]
        first, second = node.halves()
        return at(first).add_(at(second))

    return at(Span(0, num_leaves))


def sum_leaves(leaves: Tensor) -> Tensor:
    """The sum over the first axis, by the tree over its length."""
    rows = leaves.clone().unbind(0)
    return sum_nodes({Span(leaf, leaf + 1): row for leaf, row in enumerate(rows)}, len(rows))


@dataclass(frozen=True)
class LeafShare:
    """Which leaves are a rank's: equally many consecutive ones each, in the order of ranks."""

    num_leaves: int
    rank: int
    size: int

    def __post_init__(self) -> None:
        assert self.num_leaves % self.size == 0, (self.num_leaves, self.size)

    @property
    def per_rank(self) -> int:
        """Leaves of each rank."""
        return self.num_leaves // self.size

    def nodes(self) -> list[list[Span]]:
        """What each rank's leaves add up to, by rank."""
        starts = range(0, self.num_leaves, self.per_rank)
        return [whole_nodes(self.num_leaves, start, start + self.per_rank) for start in starts]

    def merges(self) -> list[int]:
        """`merges_after` of this rank's leaves."""
        first = self.rank * self.per_rank
        return merges_after(self.num_leaves, first, first + self.per_rank)
