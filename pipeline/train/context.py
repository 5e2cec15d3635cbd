"""What the training loop asks of its surroundings: a small protocol, so that one `fit()` serves all.

Under pytest, torchrun and Ray Train the loop sees the same few methods; whoever launches it
decides where metrics go, which deadlines hold and who may ask it to stop. Any difference in
numbers between the launchers is a bug.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.world import World

Phase = Literal["start", "data", "step", "evaluate", "checkpoint", "finish"]
"""What a rank is doing: the unit of timing, of heartbeat deadlines and of kill points."""

SavePoint = Literal["snapshot", "write", "before_commit", "after_commit", "prune", "score", "saved"]
"""What a save is about to do, or has just done: copy the state (in the thread that trains), write the
files, rename COMMIT, say so in the journal, remove an old checkpoint, attach a score, have all of that on
the disk, for whoever mirrors the run (in the writer's thread, beside whatever phase the rank is in)."""


class RunContext(Protocol):
    """The surroundings of one rank of one attempt of a run.

    Every rank may call every method; what is recorded by ranks other than 0 is dropped, so the
    loop needs no `if rank == 0`. Recording never blocks on a network and never raises for one.
    """

    @property
    def world(self) -> World:
        """The place of this rank among all."""
        ...

    @property
    def attempt(self) -> str:
        """A token that no other attempt of this run has; part of every path the attempt writes."""
        ...

    @property
    def tracking(self) -> str:
        """Where a person can browse the run, for the header line; empty where nobody tracks it."""
        ...

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Mark what the rank is doing for as long as the context is open; phases do not nest."""
        ...

    def mark(self, point: SavePoint, step: int) -> None:
        """Pass a point of the save of that step; called by rank 0 alone, from two threads.

        Raises WorldStateError where a later attempt of the run has begun: this one may not commit,
        remove or score anything any more. What was recorded before `before_commit` or `score` is on the disk
        when that returns. A harness that kills or stops a process at a point does so here.
        """
        ...

    def stop_requested(self) -> bool:
        """True once this rank was asked to stop; the loop makes all ranks agree at a step's end."""
        ...

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record scalars at a global optimizer step; names are declared in `train/metrics.py`."""
        ...

    def event(self, name: str, step: int, **fields: object) -> None:
        """Record something that happened: `start`, `commit`, `stop`, … with JSON values."""
        ...

    def picture(self, key: str, step: int, image_HW3: NDArray[np.uint8]) -> None:
        """Record an RGB picture; the same key at several steps makes a series."""
        ...

    def table(self, key: str, step: int, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Record a small table, such as the IoU of every class."""
        ...
