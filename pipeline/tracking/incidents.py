"""What went wrong in a run and what it cost, read from its journal: there is no record of it beside that.

An incident is a failure that a driver noted, or the loss of a driver itself, which shows by the end that
its journal lacks; under torchrun, which has no driver, by an attempt that just ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path

from pipeline.tracking.journal import START, Event, Metrics, Record, read_attempts

DRIVER = "driver-"
"""Beginning of the name of a driver's journal; the rest is what the names of its attempts end with."""
FAILURE = "failure"
RESTART = "restart"
CLOSED = "phases"
"""The event that an attempt ends with, unless it was killed."""
ENDED = "job ended"
"""The event that a driver ends with, whatever ended its job, unless it was killed: its ranks may hear of
that and end in good order, after a checkpoint, so their records cannot tell."""
DRIVER_LOST = "driver lost"
JOB_DIED = "the job died"
COLUMNS = ("step", "cause", "phase", "recover_s", "repeated")


@dataclass(frozen=True)
class Incident:
    """One failure, and the way back from it."""

    step: int
    """Where training went on; where it had been committed, if it did not."""
    cause: str
    phase: str | None
    """What the ranks in question did then, where that is known."""
    recover_s: float | None
    """From its beginning, as far as that is known, until training went on; None where it did not, or where
    nobody knows. What a lost driver cost is counted from the last record of its ranks to the next start, by
    the clocks of those who wrote these, and has all the time in it until somebody started the job again."""
    repeated: int | None
    """Steps that were done again; None where training did not go on."""


@dataclass(frozen=True)
class Account:
    """What a run lost, and the share of its time that counted."""

    incidents: tuple[Incident, ...]
    goodput: float | None
    """The time of training that counted, over that from the first start to the last record.

    Counted is each attempt from its start to the step from which the next one went on; evaluations and
    checkpoints are part of training. Lost are steps that were repeated, also those after the last record,
    and the time from a failure to the next start, where it is known. Each attempt is timed by its rank 0, one
    that failed and a restart by the driver; clocks of two machines are compared only where a driver was
    lost. None before the first step.
    """

    def values(self) -> dict[str, object]:
        """`goodput` and `incidents` as a RESULT has them."""
        goodput = None if self.goodput is None else round(self.goodput, 4)
        return {"goodput": goodput, "incidents": [asdict(incident) for incident in self.incidents]}

    def line(self) -> str | None:
        """One line about the incidents; None without any."""
        if not self.incidents:
            return None
        down_s = sum(incident.recover_s or 0.0 for incident in self.incidents)
        repeated = sum(incident.repeated or 0 for incident in self.incidents)
        count = len(self.incidents)
        share = "" if self.goodput is None else f", goodput {self.goodput:.2f}"
        return f"{count} incident{'s'[: count > 1]}: {down_s:.1f}s down, {repeated} steps repeated{share}"

    def rows(self) -> list[list[object]]:
        """The incidents as a table with COLUMNS."""
        return [[getattr(incident, column) for column in COLUMNS] for incident in self.incidents]


@dataclass
class _Job:
    """What one job wrote: its driver's events, and its attempts that began, by name, in their order."""

    driver: str | None
    events: list[Event] = field(default_factory=list)
    attempts: dict[str, list[Record]] = field(default_factory=dict)


def read_account(run_dir: Path) -> Account:
    """The account of a run so far."""
    jobs = _jobs(run_dir)
    incidents: list[Incident] = []
    for job, following in zip_longest(jobs, jobs[1:]):
        incidents += _noted(job.events)
        if following and _died(job):
            incidents.append(_job_died(job, following))
    attempts = [attempt for job in jobs for attempt in job.attempts.items()]
    failures = [event for job in jobs for event in job.events if event.name == FAILURE]
    worked_s = {event.fields.get("attempt"): event.fields.get("worked_s", 0.0) for event in failures}
    useful_s, whole_s = 0.0, sum(incident.recover_s or 0.0 for incident in incidents)
    for (name, records), following in zip_longest(attempts, attempts[1:]):
        useful_s += _time_s(records, until=_start(following[1]) if following else None)
        whole_s += max(_time_s(records, until=None), worked_s.get(name, 0.0))
    return Account(tuple(incidents), useful_s / whole_s if whole_s > 0.0 else None)


def _jobs(run_dir: Path) -> list[_Job]:
    """The jobs in which an attempt began: those of a driver, whose token they have, or one without."""
    jobs: list[_Job] = []
    for name, records in read_attempts(run_dir):
        if name.startswith(DRIVER):
            jobs.append(_Job(name.removeprefix(DRIVER), [r for r in records if isinstance(r, Event)]))
        elif any(isinstance(record, Event) and record.name == START for record in records):
            driver = jobs[-1].driver if jobs else None
            if driver is None or name.partition("-")[2] != driver:
                jobs.append(_Job(None))
            jobs[-1].attempts[name] = records
    return [job for job in jobs if job.attempts]


def _last(job: _Job) -> list[Record]:
    return list(job.attempts.values())[-1]


def _start(attempt: Sequence[Record]) -> Event:
    return next(record for record in attempt if isinstance(record, Event) and record.name == START)


def _noted(events: Sequence[Event]) -> Iterator[Incident]:
    """The incidents that a driver noted: each failure with the restart that came of it."""
    told = [event for event in events if event.name in (FAILURE, RESTART)]
    for event, following in zip_longest(told, told[1:]):
        if event.name == RESTART:
            continue
        cause, phase = str(event.fields["lost"]), event.fields["phase"]
        if following is None or following.name == FAILURE:
            yield Incident(event.step, cause, phase, None, None)
            continue
        seconds = event.fields["stood_s"] + following.fields["seconds"]
        yield Incident(following.step, cause, phase, round(seconds, 2), following.fields["repeated"])


def _died(job: _Job) -> bool:
    """Whether a job just ends: without a word of its driver, or, where it had none, of its last attempt."""
    if job.driver is not None:
        return all(event.name != ENDED for event in job.events)
    return not any(isinstance(record, Event) and record.name == CLOSED for record in _last(job))


def _job_died(job: _Job, following: _Job) -> Incident:
    """The incident between the last attempt of a job that died and the first of the next."""
    before, start = _last(job), _start(next(iter(following.attempts.values())))
    reached = max((record.step for record in before if isinstance(record, Metrics)), default=start.step)
    seconds = round(start.time_s - before[-1].time_s, 2)
    cause = JOB_DIED if job.driver is None else DRIVER_LOST
    # Below zero the clocks contradict each other, and nothing else tells.
    return Incident(start.step, cause, None, seconds if seconds >= 0 else None, max(reached - start.step, 0))


def _time_s(attempt: Sequence[Record], until: Event | None) -> float:
    """Seconds of an attempt from its start to its last record that counts, on its own clock."""
    start_s = _start(attempt).time_s
    counted = [record.time_s for record in attempt if until is None or record.step <= until.step]
    return max(max(counted, default=start_s) - start_s, 0.0)
