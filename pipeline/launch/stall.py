"""When ranks count as hung: a pure function of what was seen of them, on the clock of who looked.

A rank whose process gives no sign of life, while no other rank moves on either, is named within seconds:
signs alone may be late, behind gigabytes of a checkpoint on their way to the same storage. Where all
processes live, ranks wait for each other in collectives, so they stand still or move on together: only
where none of them moved for longer than the most patient of their phases allows does the group count as
hung. So what one rank does alone (a checkpoint, pictures, a slow read) never gets those killed that wait
for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config import DeadlineConfig
from pipeline.launch.pulse import Beat, Doing

FIRST_STEPS = 2
"""Steps of an attempt that may compile or tune, and are allowed as much as its start."""
PATIENCE = 20
"""Times the slowest recent step that the next one may take."""
RECENT = 8
"""So many phases, and signs of life, count as recent."""
PATIENCE_WITH_SILENCE = 8
"""Times the longest recent pause between two signs of life: on a starved machine they come late."""
SILENCE_OUTSIDE_STEPS = 12
"""Times longer that a process may be silent outside of steps: there, some calls hold Python's lock."""
IN_STEPS = ("data", "step")


@dataclass(frozen=True)
class Sight:
    """What has been seen of one rank; seconds of the one who looks."""

    beat: Beat
    silent_s: float = 0.0
    """Since the process last gave a new sign of life."""
    still_s: float = 0.0
    """Since its loop last entered a phase."""
    recent_s: tuple[float, ...] = ()
    """How long the last few phases within steps took; an average where several passed between two looks."""
    pauses_s: tuple[float, ...] = ()
    """Between the last few signs of life, likewise."""


@dataclass(frozen=True)
class Stall:
    """Ranks that count as hung."""

    ranks: tuple[int, ...]
    doing: Doing
    seconds: float
    silent: bool
    """Whether their processes gave no sign of life, or lived and stood still."""

    def __str__(self) -> str:
        """`rank 1 hung`, and how that showed."""
        names = ", ".join(map(str, self.ranks))
        how = "silent" if self.silent else "standing still"
        return f"rank {names} hung ({how} for {self.seconds:.1f}s in {self.doing})"


def seen(before: Sight | None, beat: Beat, passed_s: float) -> Sight:
    """The sight after one more look, `passed_s` after the one before."""
    if before is None or before.beat.place != beat.place:
        return Sight(beat)
    stood_s, silent_s, pauses_s = before.still_s + passed_s, before.silent_s + passed_s, before.pauses_s
    ticked, moved = beat.ticks - before.beat.ticks, beat.moves - before.beat.moves
    if ticked:
        silent_s, pauses_s = 0.0, (*pauses_s, silent_s / ticked)[-RECENT:]
    if not moved:
        return Sight(beat, silent_s, stood_s, before.recent_s, pauses_s)
    recent_s = before.recent_s
    if before.beat.doing in IN_STEPS and before.beat.steps > FIRST_STEPS:
        recent_s = (*recent_s, stood_s / moved)[-RECENT:]
    return Sight(beat, silent_s, 0.0, recent_s, pauses_s)


def find_stall(sights: Mapping[int, Sight], deadline: DeadlineConfig) -> Stall | None:
    """The hung ranks among those seen, or None; ranks that ended are not waited for."""
    at_work = {rank: sight for rank, sight in sights.items() if sight.beat.doing != "ended"}
    silent = {
        rank: sight
        for rank, sight in at_work.items()
        if min(sight.silent_s, _nobody_moved_s(at_work, rank)) > _silence_allowed_s(sight, deadline)
    }
    if silent:
        first = min(silent.values(), key=lambda sight: -sight.silent_s)
        return Stall(tuple(sorted(silent)), first.beat.doing, first.silent_s, silent=True)
    still_s = min((sight.still_s for sight in at_work.values()), default=0.0)
    if not at_work or still_s <= max(_still_allowed_s(sight, deadline) for sight in at_work.values()):
        return None
    # Those that wait for others do so in a step: whoever stands elsewhere is what they wait for.
    elsewhere = [rank for rank, sight in at_work.items() if sight.beat.doing != "step"]
    ranks = tuple(sorted(elsewhere or at_work))
    return Stall(ranks, at_work[ranks[0]].beat.doing, still_s, silent=False)


def _nobody_moved_s(at_work: Mapping[int, Sight], but: int) -> float:
    """Since another rank than `but` entered a phase; no two steps are made without all ranks."""
    return min((sight.still_s for rank, sight in at_work.items() if rank != but), default=math.inf)


def _still_allowed_s(sight: Sight, deadline: DeadlineConfig) -> float:
    """Longest that a rank may stand in the phase that it is in."""
    doing = sight.beat.doing
    if doing == "start" or (doing in IN_STEPS and sight.beat.steps <= FIRST_STEPS):
        return deadline.start_s
    if doing in IN_STEPS:
        usual_s = PATIENCE * max(sight.recent_s, default=0.0)
        return max(deadline.data_s if doing == "data" else deadline.step_s, usual_s)
    return deadline.evaluate_s if doing == "evaluate" else deadline.checkpoint_s


def _silence_allowed_s(sight: Sight, deadline: DeadlineConfig) -> float:
    """Longest that a rank's process may be silent in the phase that it is in."""
    usual_s = PATIENCE_WITH_SILENCE * max(sight.pauses_s, default=0.0)
    if sight.beat.doing in IN_STEPS and sight.beat.steps > FIRST_STEPS:
        return max(deadline.silence_s, usual_s)
    outside_s = min(_still_allowed_s(sight, deadline), SILENCE_OUTSIDE_STEPS * deadline.silence_s)
    return max(outside_s, usual_s)
