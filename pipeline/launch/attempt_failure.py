"""What ended an attempt: whether another may help, what to call it, and how it is recorded."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from pipeline.errors import PipelineError
from pipeline.tracking.journal import START, Event, Journal, Metrics, Record, committed_step, read_journal

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


class HungError(PipelineError):
    """Ranks hung and were killed; the cause is what Ray said then. Nothing says that they would again."""


@dataclass(frozen=True)
class Failure:
    """An attempt that ended too early: what was lost, the last step recorded, the starts until then."""

    lost: str
    reached: int
    starts: int
    noticed_s: float


def _failures(error: Exception) -> dict[int, Exception]:
    """Rank → exception, where Ray tells them apart; the error itself under -1 where it does not."""
    if isinstance(error, WorkerGroupError):
        return dict(sorted(error.worker_failures.items()))
    return {-1: error}


def raise_unless_retryable(error: Exception, *, last: bool) -> None:
    """Raises a worker's PipelineError, a bug, or, when there is no restart left, the failure itself."""
    if isinstance(error, HungError) and not last:
        return
    for failure in _failures(error).values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, PipelineError):
                raise cause from None
            cause = cause.__cause__
    bugs = [f for rank, f in _failures(error).items() if rank >= 0 and isinstance(f, BUGS)]
    if last or bugs:
        raise error


def describe(error: Exception) -> str:
    """`rank 1 lost`, or what else ended the attempt, short."""
    if isinstance(error, HungError):
        return str(error)
    failures = _failures(error)
    lost = [rank for rank, failure in failures.items() if isinstance(failure, WorkerHealthCheckFailedError)]
    if lost:
        return f"rank {', '.join(str(rank) for rank in lost)} lost"
    rank, failure = next(iter(failures.items()))
    who = "the worker group" if rank < 0 else f"rank {rank}"
    return f"{who} failed ({type(failure).__name__})"


def note_failure(run_dir: Path, journal: Journal, lost: str) -> Failure:
    """The failure as it is recorded: what was lost, and from which step training goes on."""
    records = read_journal(run_dir)
    resumed = committed_step(records)
    reached = max((r.step for r in records if isinstance(r, Metrics)), default=resumed)
    journal.event("failure", resumed, lost=lost, reached=reached)
    return Failure(lost, max(reached, resumed), len(_starts(records)), time.monotonic())


def note_restart(run_dir: Path, journal: Journal, failure: Failure | None) -> None:
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
    journal.event("restart", resumed, lost=failure.lost, seconds=seconds, repeated=repeated)
    logger.info(
        "[event] %s → restarted in %.1fs at step %d, %d steps repeated",
        failure.lost, seconds, resumed, repeated,
    )  # fmt: skip


def _starts(records: Sequence[Record]) -> list[int]:
    """The steps at which attempts began, in their order."""
    return [record.step for record in records if isinstance(record, Event) and record.name == START]
