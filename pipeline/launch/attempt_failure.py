"""What ended an attempt: whether another may help, what to call it, and how it is recorded."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from pipeline.errors import PipelineError, Preempted
from pipeline.launch.driver_journal import DriverJournal
from pipeline.launch.rank_watch import SeenOfAttempt
from pipeline.launch.stall import Stall
from pipeline.tracking.incidents import FAILURE, RESTART
from pipeline.tracking.journal import START, Event, Metrics, Record, committed_step, read_journal

logger = logging.getLogger(__name__)

BUGS = (
    AssertionError,
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    TypeError,
    ValueError,
)
"""Exceptions of a worker that another attempt would only repeat; all others may be a lost rank's
doing: Ray's own errors, and the RuntimeError of a collective whose peer is gone."""

START_WAIT_S = 5.0
"""Longest from a new attempt's first line to its start in the journal."""


class LostError(Exception):
    """An attempt that ended too early; its cause is what Ray said."""

    def __init__(
        self, lost: str, phase: str | None, stood_s: float, seen: SeenOfAttempt | None = None
    ) -> None:
        super().__init__(lost)
        self.lost = lost
        self.phase = phase
        """What the ranks in question did, where that is known."""
        self.stood_s = stood_s
        """How long they had stood still when that was noticed."""
        self.seen = seen or SeenOfAttempt({})
        """What else was seen of the attempt; nothing where it lost nothing."""


@dataclass(frozen=True)
class Failure:
    """An attempt that ended too early: what was lost, the newest commit, the last step, the starts so far."""

    lost: str
    resumed: int
    reached: int
    starts: int
    noticed_s: float


def lost_by(error: Exception, hung: Stall | None, seen: SeenOfAttempt) -> LostError:
    """What an attempt was lost by: ranks that hung, else what Ray says."""
    doing = seen.doing
    if hung:
        return LostError(str(hung), hung.doing, hung.seconds, seen)
    failures = _failures(error)
    gone = [rank for rank, failure in failures.items() if isinstance(failure, WorkerHealthCheckFailedError)]
    if gone:
        return LostError(f"rank {', '.join(map(str, gone))} lost", doing.get(gone[0]), 0.0, seen)
    rank, failure = next(iter(failures.items()))
    who = "the worker group" if rank < 0 else f"rank {rank}"
    return LostError(f"{who} failed ({type(failure).__name__})", doing.get(rank), 0.0, seen)


def raise_if_it_would_repeat(lost: LostError) -> None:
    """Raises a worker's PipelineError, or its bug: another attempt would only end the same way."""
    if lost.stood_s:
        return  # all were killed: what they raised then tells nothing
    assert isinstance(lost.__cause__, Exception)
    failures = _failures(lost.__cause__)
    for failure in failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, PipelineError):
                raise cause from None
            cause = cause.__cause__
    if any(rank >= 0 and isinstance(failure, BUGS) for rank, failure in failures.items()):
        raise lost.__cause__


def give_up(lost: LostError) -> NoReturn:
    """Raises what ended the last attempt that was allowed."""
    if lost.stood_s:
        raise PipelineError(
            f"{lost.lost}, and no restart is left; type the same again to go on, or allow a slow phase more "
            "by --launch.deadline.*"
        ) from lost.__cause__
    assert lost.__cause__ is not None
    raise lost.__cause__


def stopped_by(failure: Failure, name: str) -> Preempted:
    """What to raise for an attempt of that run which was lost when a stop was asked for already."""
    lost = failure.reached - failure.resumed
    return Preempted(
        f"{failure.lost} before all had stopped: {lost} steps are lost; type the same with --name {name} to "
        f"go on from step {failure.resumed}"
    )


def _failures(error: Exception) -> dict[int, Exception]:
    """Rank → exception, where Ray tells them apart; the error itself under -1 where it does not."""
    if isinstance(error, WorkerGroupError):
        return dict(sorted(error.worker_failures.items()))
    return {-1: error}


def note_failure(
    run_dir: Path, journal: DriverJournal, attempt: str, lost: LostError, before: Failure | None
) -> Failure:
    """The failure as it is recorded: what was lost, and from which step training goes on.

    One after which training never began again counts from the failure `before` it. Curves have a point every
    `train.metrics_every` steps, so how far an attempt came is also told by its signs of life.
    """
    records = read_journal(run_dir)
    resumed, starts = committed_step(records), _starts(records)
    reached = max((r.step for r in records if isinstance(r, Metrics)), default=resumed)
    if lost.seen.steps and starts:
        reached = max(reached, starts[-1] + lost.seen.steps)
    worked_s = max(lost.seen.at_work_s - lost.stood_s, 0.0)
    journal.note(
        FAILURE, resumed, lost=lost.lost, phase=lost.phase, stood_s=round(lost.stood_s, 2), reached=reached,
        attempt=attempt, worked_s=round(worked_s, 2),
    )  # fmt: skip
    noticed_s = before.noticed_s if before and before.starts == len(starts) else time.monotonic()
    return Failure(lost.lost, resumed, max(reached, resumed), len(starts), noticed_s)


def note_restart(run_dir: Path, journal: DriverJournal, failure: Failure | None) -> None:
    """Record that the loop runs again after a failure, and say so; nothing to say without one.

    The step is the one that the workers restored, which is below the newest commit's where that one
    turned out to be damaged.
    """
    if failure is None:
        return
    seconds = time.monotonic() - failure.noticed_s
    give_up_s = time.monotonic() + START_WAIT_S
    records = read_journal(run_dir)
    while len(_starts(records)) <= failure.starts and time.monotonic() < give_up_s:
        time.sleep(0.05)  # the header, which is logged first, comes a moment before the start's record
        records = read_journal(run_dir)
    # A commit that came in between is not what was restored.
    resumed = _starts(records)[-1] if len(_starts(records)) > failure.starts else committed_step(records)
    repeated = max(failure.reached - resumed, 0)
    journal.note(RESTART, resumed, lost=failure.lost, seconds=seconds, repeated=repeated)
    logger.info(
        "[event] %s → restarted in %.1fs at step %d, %d steps repeated",
        failure.lost, seconds, resumed, repeated,
    )  # fmt: skip


def _starts(records: Sequence[Record]) -> list[int]:
    """The steps at which attempts began, in their order."""
    return [record.step for record in records if isinstance(record, Event) and record.name == START]
