"""Where a run is killed: seed → points, a pure function, so that a point can be run again by its number.

Phases take turns in an order that the seed shuffles, and every second point of a phase is resumed at
another world size, so a part of the points is a smaller sample of the same kind.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

STEPS, BATCH, VIRTUAL_SHARDS = 8, 12, 4
CHECKPOINT_EVERY, EVALUATE_EVERY = 2, 3
WORLDS = (1, 2, 4)
"""What `elastic` is to make no difference between."""
EXACT_WORLD = 3
"""The ranks of a run that is `exact`: stock DDP is not, from three ranks on."""

STEP_PHASES = ("data", "forward", "backward", "reduction", "optimizer")
SAVE_PHASES = ("snapshot", "write", "before_commit", "after_commit")
"""Of these the last three are in a thread of their own, while training goes on."""
OTHER_PHASES = ("evaluate", "journal", "restore")
RANK_PHASES = (*STEP_PHASES, *SAVE_PHASES, *OTHER_PHASES)
"""What a rank is killed in, by itself."""
RAY_PHASES = ("controller", "driver")
"""Processes of Ray that are killed by a rank, once a step was done."""
LOADER_WORKER = "loader_worker"
"""A process that reads for a rank, killed by it while a batch is being made; the attempt goes on."""
UPLOAD_PHASES = ("upload_journal", "upload_files", "upload_commit", "upload_removal")
"""Of a run that is kept in an object store, in a thread of their own too."""
REMOTE_PHASES = (*UPLOAD_PHASES, "before_commit", "after_commit")
MAIN_RANK_PHASES = (*SAVE_PHASES, *UPLOAD_PHASES, "journal")
"""Those that rank 0 alone goes through."""
PHASES: Mapping[str, tuple[str, ...]] = {
    "torchrun": (*RANK_PHASES, LOADER_WORKER),
    "ray": RAY_PHASES + RANK_PHASES,
    "remote": REMOTE_PHASES,
}
"""By kind of run: under torchrun in a folder, under Ray Train, under torchrun in an object store."""

SAVED_STEPS = tuple(range(CHECKPOINT_EVERY, STEPS + 1, CHECKPOINT_EVERY))
REMOVED_STEPS = (3, 6)
"""Saves that make the one before superfluous at the store, whatever the scores are."""
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
    machine_gone: bool = False
    """Its disk too, of a run that is kept in an object store."""

    @property
    def ends(self) -> bool:
        """Whether the attempt ends with it."""
        return self.phase != LOADER_WORKER

    def part(self, parts: int) -> int:
        """Which of so many parts of the phase it lies in."""
        return int(self.fraction * parts)


@dataclass(frozen=True)
class Attempt:
    """A start of the run."""

    world: int
    strike: Strike | None
    """What happens to it; the last attempt goes on to the end."""


@dataclass(frozen=True)
class Point:
    """One kill and the resume after it; of the phase `restore`, a kill in the resume after another one."""

    number: int
    launcher: str
    """A kind of run: one of PHASES."""
    determinism: str
    attempts: tuple[Attempt, ...]
    loader_workers: int = 0
    """Processes that read for each rank."""

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
    return [_draw(seed, number, launcher, PHASES[launcher]) for number in range(count)]


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
    strike = _strike(phase, resumed if phase == "restore" else world, launcher, chance)
    if launcher == "remote":
        gone = (turn + phases.index(phase) // 2) % 2 == 0 or phase not in UPLOAD_PHASES
        strike = replace(strike, machine_gone=gone, whole_machine=gone or strike.whole_machine)
    pooled = phase == LOADER_WORKER or (phase == "data" and launcher == "torchrun" and turn % 2 == 1)
    determinism = "exact" if exact else "elastic"
    return Point(number, launcher, determinism, _attempts(strike, world, resumed, chance), int(pooled))


def _strike(phase: str, world: int, launcher: str, chance: random.Random) -> Strike:
    return Strike(
        phase=phase,
        step=chance.choice(_steps(phase)),
        rank=0 if phase in MAIN_RANK_PHASES else chance.randrange(world),
        fraction=chance.random(),
        whole_machine=launcher != "ray" and chance.random() < 0.5 and phase != LOADER_WORKER,
    )


def _attempts(strike: Strike, world: int, resumed: int, chance: random.Random) -> tuple[Attempt, ...]:
    if not strike.ends:
        return (Attempt(world, strike),)
    if strike.phase != "restore":
        return (Attempt(world, strike), Attempt(resumed, None))
    first = Strike("optimizer", strike.step, chance.randrange(world), chance.random())
    return (Attempt(world, first), Attempt(resumed, strike), Attempt(world, None))


def _steps(phase: str) -> Sequence[int]:
    """Steps at which a phase comes."""
    places: dict[str, Sequence[int]] = {
        "evaluate": EVALUATED_STEPS,
        "journal": range(1, STEPS + 1),
        "restore": range(CHECKPOINT_EVERY + 1, STEPS),  # there is a checkpoint by then
        "upload_removal": REMOVED_STEPS,
        LOADER_WORKER: range(STEPS // 2),  # so early that its loss is noticed
    }
    places |= dict.fromkeys(RAY_PHASES, range(1, STEPS)) | dict.fromkeys(STEP_PHASES, range(STEPS))
    return places.get(phase, SAVED_STEPS)
