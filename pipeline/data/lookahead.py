"""The rows of a plan a while before they are due, so that shards are on their way when they are."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Row(NamedTuple):
    """A position of the plan, and the sample that has it."""

    position: int
    shard: int
    sample: int


class Lookahead(Iterator[Row]):
    """The same rows; `announce` is called for a shard when a row of it comes `ahead` rows near.

    It is called again for a shard that had gone out of view, as its copy may be gone from the disk too.
    """

    def __init__(self, rows: Iterator[Row], ahead: int, announce: Callable[[int], None]) -> None:
        self._rows, self._ahead, self._announce = rows, ahead, announce
        self._near: deque[Row] = deque()
        self._num_near: Counter[int] = Counter()

    def __next__(self) -> Row:
        while len(self._near) <= self._ahead:
            row = next(self._rows)
            self._near.append(row)
            self._num_near[row.shard] += 1
            if self._num_near[row.shard] == 1:
                self._announce(row.shard)
        due = self._near.popleft()
        self._num_near[due.shard] -= 1
        if self._num_near[due.shard] == 0:
            del self._num_near[due.shard]
        return due

    def announce_again(self) -> None:
        """Announce every shard in view, the nearest first: whoever was told may have forgotten."""
        for shard in dict.fromkeys(row.shard for row in self._near):
            self._announce(shard)
