"""What the journal says of a run that was killed, against what the kills allow it to say.

Where an attempt begins depends on whether the checkpoint that was on its way had come through, which a kill
beside it leaves open; a kill in a save or in an upload does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pipeline.launch.fence import token_of
from pipeline.tracking.incidents import DRIVER, JOB_DIED, read_account
from pipeline.tracking.journal import COMMIT, START, Event, read_attempts
from tests.chaos.points import (
    BATCH,
    CHECKPOINT_EVERY,
    RAY_PHASES,
    STEPS,
    UPLOAD_PHASES,
    Point,
    Strike,
)


@dataclass(frozen=True)
class _Begun:
    """An attempt that came as far as the loop."""

    number: int
    step: int
    position: int
    world: int
    committed: int
    """The newest step of which it said that it is on the disk."""


def history_wrong(run_dir: Path, point: Point, commits: Sequence[int]) -> list[str]:
    """What of starts and incidents cannot be; `commits` are the steps that the undisturbed run saves."""
    begun = list(_begun(run_dir))
    wrong = []
    for attempt in begun:
        if attempt.position != attempt.step * BATCH:
            wrong.append(f"attempt {attempt.number} began at step {attempt.step}, sample {attempt.position}")
        world = point.attempts[attempt.number - 1].world if attempt.number <= len(point.attempts) else None
        if attempt.world != world:
            wrong.append(f"attempt {attempt.number} was of {attempt.world} ranks, not of {world}")
    if wrong:
        return wrong
    if not begun or begun[-1].number != len(point.attempts):
        return [f"attempts {[attempt.number for attempt in begun]} began of {len(point.attempts)}"]
    committed = 0
    for attempt in begun:
        strike = point.attempts[attempt.number - 2].strike if attempt.number > 1 else None
        least, most = starts_between(strike, commits) if strike else (0, 0)
        if not any(a.strike and a.strike.machine_gone for a in point.attempts):
            least = max(least, committed)
        if not least <= attempt.step <= most:
            wrong.append(f"attempt {attempt.number} began at step {attempt.step}, not at {least} to {most}")
        committed = attempt.committed
    return wrong + _incidents_wrong(run_dir, point, begun)


def starts_between(strike: Strike, commits: Sequence[int]) -> tuple[int, int]:
    """Least and greatest step at which an attempt may begin after that kill.

    A save waits for the one before, and its upload, so nothing but the newest is ever on its way.
    """
    at = strike.step
    if strike.phase in ("snapshot", "write", "before_commit"):
        return _before(at, commits), _before(at, commits)
    if strike.phase == "after_commit" or strike.phase in UPLOAD_PHASES:
        past_commit = strike.phase == "upload_commit" and strike.part(2) == 1
        there = strike.phase == "upload_removal" or past_commit or not strike.machine_gone
        only = at if there else _before(at, commits)
        return only, only
    if strike.phase == "journal" or (strike.phase == "evaluate" and at % CHECKPOINT_EVERY):
        newest = _before(at, commits)  # the step's own save comes later
    else:
        newest = _before(at + 1, commits)
    if strike.phase in RAY_PHASES:  # ranks train until somebody ends them
        return _before(newest, commits), STEPS
    # Where rank 0 lives, it may come to the end of the step before it hears of another's death.
    lives = strike.phase == "restore" or (strike.rank > 0 and not strike.whole_machine)
    return _before(newest, commits), _before(at + 2, commits) if lives else newest


def _before(step: int, commits: Sequence[int]) -> int:
    return max((commit for commit in commits if commit < step), default=0)


def _begun(run_dir: Path) -> Iterator[_Begun]:
    for name, records in read_attempts(run_dir):
        events = [record for record in records if isinstance(record, Event)]
        start = next((event for event in events if event.name == START), None)
        if start and not name.startswith(DRIVER):
            committed = max([start.step, *(event.step for event in events if event.name == COMMIT)])
            position, world = start.fields["position"], start.fields["world_size"]
            yield _Begun(token_of(name), start.step, position, world, committed)


def _incidents_wrong(run_dir: Path, point: Point, begun: Sequence[_Begun]) -> list[str]:
    """One incident for each kill, as far as its attempt began.

    Under torchrun, which has no driver, a rank 0 that lives ends its journal in good order and nobody knows.
    """
    told = [(incident.cause, incident.step) for incident in read_account(run_dir).incidents]
    strikes = {number: attempt.strike for number, attempt in enumerate(point.attempts, start=1)}
    if point.launcher == "ray":
        # Those of attempts that did not begin are told where another of the same job did.
        num_struck, num_begun = sum(map(bool, strikes.values())), sum(bool(strikes[a.number]) for a in begun)
        return [] if num_begun <= len(told) <= num_struck else [f"{num_struck} kills are told as {told}"]
    expected = [
        (JOB_DIED, after.step)
        for before, after in pairwise(begun)
        if (strike := strikes[before.number]) and (strike.rank == 0 or strike.whole_machine)
    ]
    return [] if told == expected else [f"incidents are {told}, not {expected}"]
