"""A job on a Ray head of its own that is submitted again when its driver, or the head, dies.

A driver that was killed leaves no RESULT; one that refused, failed or was stopped does. So the end
without a RESULT is what is repeated: whatever is left of that attempt is ended first, by process id,
and the same command goes on from the newest checkpoint. On a cluster of others the scheduler does
this: `backoffLimit` of the RayJob in cluster/kuberay.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import Preempted, WorldStateError
from pipeline.launch.job import Result, tell
from pipeline.launch.job_follower import NO_ANSWER, HeadLostError, JobFollower
from pipeline.launch.local_cluster import LocalCluster

RESUBMISSIONS = 3
"""Deaths in a row without a newer checkpoint in between: a driver that dies four times before it has
made any progress would die again, while a long run may lose many over its days."""
SHOWS_TRAINING = ("[train]", "[done]")
"""How the lines begin that a driver writes once it trains, or finds that there is nothing left to train."""


@dataclass(frozen=True)
class SupervisedJob:
    """What is run, and how its progress is known."""

    name: str
    """The run's; submissions are named after it."""
    command: Sequence[str]
    environment: dict[str, str]
    num_cpus: int
    copy_code: Callable[[Path], Path]
    """Fills a folder with what is uploaded, and returns it."""
    newest_step: Callable[[], int]
    """Step of the newest checkpoint, 0 without one: what tells progress from a repeated death."""


class Supervisor:
    """Runs one job to a RESULT, over as many drivers and heads as `RESUBMISSIONS` allows."""

    def __init__(
        self, job: SupervisedJob, show: Callable[[str], None], stop_wanted: Callable[[], bool]
    ) -> None:
        self._job, self._show_line, self._stop_wanted = job, show, stop_wanted
        self._deaths, self._reached = 0, job.newest_step()
        self._lost = ""  # what died, until its successor trains
        self._noticed_s = 0.0

    def run(self) -> Result:
        """The job's RESULT; raises WorldStateError once it died too often, Preempted after a stop."""
        while True:
            with LocalCluster(num_cpus=self._job.num_cpus) as cluster:
                try:
                    return self._run_on(cluster)
                except HeadLostError as error:
                    cluster.abandon()  # before anything that may refuse to go on
                    self._note_death(str(error))
                finally:
                    cluster.stop()
                    _tell_left(cluster)

    def _run_on(self, cluster: LocalCluster) -> Result:
        """The RESULT, over as many drivers as it takes; raises HeadLostError where the head dies."""
        code = self._job.copy_code(cluster.folder / "code")
        environment = {"env_vars": self._job.environment}
        submission = self._new_name()
        cluster.submit(submission, code, environment, list(self._job.command))
        while True:
            follower = JobFollower(cluster, submission, self._show)
            try:
                status = follower.follow(self._stop_wanted)
            except HeadLostError:
                if follower.result is None:
                    raise
            if follower.result is not None:
                return follower.result
            cluster.end_jobs()
            self._note_death(f"the job's driver died ({status})", stopped=status == "STOPPED")
            earlier, submission = submission, self._new_name()
            try:
                cluster.submit_again(submission, earlier, environment)
            except NO_ANSWER as error:
                raise HeadLostError("the local Ray head took no job any more") from error

    def _new_name(self) -> str:
        return f"{self._job.name}-{secrets.token_hex(3)}"

    def _note_death(self, lost: str, *, stopped: bool = False) -> None:
        """Count a death; raises what there is to say where nothing is submitted again."""
        if stopped or self._stop_wanted():
            raise Preempted("stopped while nothing was training; type the same again to go on")
        step = self._job.newest_step()
        self._deaths = 1 if step > self._reached else self._deaths + 1
        self._reached = step
        if self._deaths > RESUBMISSIONS:
            raise WorldStateError(
                f"{lost} without a RESULT line, {self._deaths} times without a newer checkpoint in between; "
                "what it said is above"
            )
        self._lost, self._noticed_s = self._lost or lost, self._noticed_s or time.monotonic()

    def _show(self, line: str) -> None:
        """Passes a line on, after the one that says that the successor of what died trains."""
        if self._lost and line.startswith(SHOWS_TRAINING):
            seconds = time.monotonic() - self._noticed_s
            self._show_line(f"[event] {self._lost} → submitted again, on after {seconds:.1f}s")
            self._lost, self._noticed_s = "", 0.0
        self._show_line(line)


def _tell_left(cluster: LocalCluster) -> None:
    left = [process.pid for process in cluster.processes()]
    if left:
        tell(f"make train: processes {left} could not be ended")
