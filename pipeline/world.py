"""Who am I among how many: plain integers, so that data and tests need no process group."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """One process's place: `rank` of `size`, and the same counted on its own node alone."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank {self.rank} is not in 0..{self.size - 1}")
        if not 0 <= self.local_rank < self.local_size <= self.size:
            raise ValueError(f"local rank {self.local_rank} of {self.local_size}, world size {self.size}")

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes."""
        return self.rank == 0
