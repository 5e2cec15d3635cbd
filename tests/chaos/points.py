"""Where a run is killed: seed → points, a pure function, so that a point can be run again by its number.

Phases take turns in an order that the seed shuffles, and every second point of a phase is resumed at
another world size, so a part of the points is a smaller sample of the same kind.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

STEPS, BATCH, VIRTUAL_SHARDS = 8, 12, 4
CHECKPOINT_EVERY, EVALUATE_EVERY = 2, 3
WORLDS = (1, 2, 4)
"""What `elastic` is to make no difference between."""
EXACT_WORLD = 3
"""The ranks of a run that is `exact`: stock DDP is not, from three ranks on."""

STEP_PHASES = ("data", "forward", "backward", "reduction", "optimizer")
SAVE_PHASES = ("snapshot", "write", "before_commit", "after_commit")
OTHER_PHASES = ("evaluate", "journal", "restore")
RANK_PHASES = (*STEP_PHASES, *SAVE_PHASES, *OTHER_PHASES)
"""What a rank is killed in, by itself."""
RAY_PHASES = ("controller", "driver")
"""Processes of Ray that are killed from outside, once a step was done."""
MAIN_RANK_PHASES = (*SAVE_PHASES, "journal")
"""Those that rank 0 alone goes through."""

SAVED_STEPS = tuple(range(CHECKPOINT_EVERY, STEPS + 1, CHECKPOINT_EVERY))
EVALUATED_STEPS = tuple(sorted({*range(EVALUATE_EVERY, STEPS + 1, EVALUATE_EVERY), STEPS}))


@dataclass(frozen=True)
class Strike:
    """One kill."""

    phase: str
    step: int
    """Steps done when it comes."""
    rank: int
    fraction: float
    """Where in the phase, from 0 to below 1: which module, which parameter, which file, which side of it."""
    whole_machine: bool = False
    """Every process of the attempt at once, or this rank alone."""


@dataclass(frozen=True)
class Attempt:
    """A start of the run."""

    world: int
    strike: Strike | None
    """What ends it; the last attempt goes on to the end."""


@dataclass(frozen=True)
class Point:
    """One kill and the resume after it; of the phase `restore`, a kill in the resume after another one."""

    number: int
    launcher: str
    """`torchrun` or `ray`."""
    determinism: str
    attempts: tuple[Attempt, ...]

    @property
    def strike(self) -> Strike:
        """The kill that the point stands for."""
        return [attempt.strike for attempt in self.attempts if attempt.strike][-1]

    @property
    def moves(self) -> bool:
        """Whether it is resumed at another world size."""
        return len({attempt.world for attempt in self.attempts}) > 1

    @property
    def name(self) -> str:
        """For a folder and a progress line."""
        strike = self.strike
        worlds = "-".join(str(attempt.world) for attempt in self.attempts)
        where = f"{strike.phase}-step{strike.step}-rank{strike.rank}"
        return f"{self.launcher}-{self.number:03d}-{where}-worlds{worlds}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def strike_from_dict(values: Mapping[str, Any]) -> Strike:
    """What `asdict` made of a strike."""
    return Strike(**values)


def draw_points(seed: int, count: int, launcher: str) -> list[Point]:
    """The first `count` points of a seed; those of a smaller count are the first of a larger one's."""
    phases = RANK_PHASES if launcher == "torchrun" else RAY_PHASES + RANK_PHASES
    return [_draw(seed, number, launcher, phases) for number in range(count)]


def _draw(seed: int, number: int, launcher: str, phases: Sequence[str]) -> Point:
    turn, place = divmod(number, len(phases))
    phase = random.Random(f"{seed} {launcher} turn {turn}").sample(phases, len(phases))[place]
    chance = random.Random(f"{seed} {launcher} point {number}")
    # One point in eight is of three ranks, which `elastic` cannot have and stock DDP gets wrong.
    exact = launcher == "torchrun" and chance.random() < 1 / 8
    world = EXACT_WORLD if exact else chance.choice(WORLDS)
    # By turns and not by chance: half of a phase's resumes at another world, however few points there are.
    moves = (turn + phases.index(phase)) % 2 == 0 and not exact
    resumed = chance.choice([size for size in WORLDS if size != world]) if moves else world
    struck = resumed if phase == "restore" else world
    strike = Strike(
        phase=phase,
        step=chance.choice(_steps(phase)),
        rank=0 if phase in MAIN_RANK_PHASES else chance.randrange(struck),
        fraction=chance.random(),
        whole_machine=launcher == "torchrun" and chance.random() < 0.5,
    )
    attempts = (Attempt(struck, strike), Attempt(world if phase == "restore" else resumed, None))
    if phase == "restore":
        first = Strike("optimizer", strike.step, chance.randrange(world), chance.random())
        attempts = (Attempt(world, first), *attempts)
    return Point(number, launcher, "exact" if exact else "elastic", attempts)


def _steps(phase: str) -> Sequence[int]:
    """Steps at which a phase comes."""
    if phase in SAVE_PHASES:
        return SAVED_STEPS
    if phase == "evaluate":
        return EVALUATED_STEPS
    if phase == "journal":
        return range(1, STEPS + 1)
    if phase == "restore":  # there is a checkpoint by then
        return range(CHECKPOINT_EVERY + 1, STEPS)
    return range(1, STEPS) if phase in RAY_PHASES else range(STEPS)
