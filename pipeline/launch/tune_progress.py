"""What the driver of a search says and shows while it runs: lines, a table now and then, MLflow's runs."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import Preempted
from pipeline.launch.job import Result
from pipeline.launch.run_folder import write_json
from pipeline.launch.run_record import describe
from pipeline.launch.search_tracking import SearchTracking
from pipeline.launch.train_job import Request, git_commit
from pipeline.launch.tune_checks import CheckedSearch
from pipeline.launch.tune_folder import OUTCOME, TrialReader, TuneFolder
from pipeline.launch.tune_request import TuneRequest
from pipeline.launch.tune_trial import config_of
from pipeline.search.agenda import num_planned
from pipeline.search.records import SearchRecord
from pipeline.search.table import ended_line, table_lines
from pipeline.settings import config_hash
from pipeline.tracking.mlflow_store import Status
from pipeline.tracking.report import REPORT

logger = logging.getLogger(__name__)

TABLE_EVERY_S = 30.0
LOOK_EVERY_S = 1.0
READING_SHARE = 20
"""Of the time that a look took, until the next: long journals cost below a twentieth of a core."""


class Progress:
    """Looks at the folder of a search; `look` may be called as often as one likes."""

    def __init__(self, request: TuneRequest, checked: CheckedSearch) -> None:
        self._name, self._plan = request.name, checked.plan
        self._reader = TrialReader(TuneFolder(request.search_dir), checked.plan)
        recipe = request.flags.config or request.flags.recipe or "laptop"
        self._commit = git_commit()
        self._facts = {"recipe": recipe, "shards": request.shards, "git_commit": self._commit}
        self._told = {trial.number for trial in self._reader.trials() if trial.is_over}
        self._look_at_s, self._table_s = 0.0, time.monotonic()
        tags = {"git.commit": self._commit, "config_hash": config_hash(checked.config)}
        as_run = Request(
            checked.config, request.shards, request.runs_dir, request.name, request.workers,
            preflight_only=False,
        )  # fmt: skip
        self.concurrent = 1
        """Trials at once, for the time that is left."""
        self.tracking = SearchTracking(
            describe(as_run, tags),
            lambda trial: config_of(checked.config, dict(trial.settings), trial.seed),
            f"search-{secrets.token_hex(3)}",
            self.record(),
        )

    def look(self) -> None:
        """Say and show what is new, and all of it now and then."""
        now_s, began_s = time.monotonic(), time.thread_time()
        if now_s < self._look_at_s:
            return
        record = self._tell_ended()
        pause_s = max(LOOK_EVERY_S, READING_SHARE * (time.thread_time() - began_s))
        self._look_at_s = time.monotonic() + pause_s
        self.tracking.update(record)
        if now_s - self._table_s >= TABLE_EVERY_S:
            self._table_s = now_s
            for line in table_lines(record, num_planned(self._plan), self.concurrent):
                logger.info("%s", line)

    def finish(self, status: Status, wait_s: float) -> None:
        """Say and show what is new since the last look, and end the search's run."""
        pending = self.tracking.finish(self._tell_ended(), status, wait_s)
        if pending:
            logger.info("[event] %s", pending)

    def record(self) -> SearchRecord:
        """The search as it is now."""
        return self._reader.record(self._name, self._facts)

    def _tell_ended(self) -> SearchRecord:
        record = self.record()
        run_id_of = self.tracking.run_id_of
        trials = [dataclasses.replace(trial, run_id=run_id_of(trial.number)) for trial in record.trials]
        record = dataclasses.replace(record, trials=tuple(trials))
        for trial in record.trials:
            if trial.is_over and trial.number not in self._told:
                self._told.add(trial.number)
                logger.info("%s", ended_line(record, trial))
        return record


@contextmanager
def followed(request: TuneRequest, checked: CheckedSearch, result: Result) -> Iterator[Progress]:
    """The progress of a search, whose run in MLflow ends with the context; the RESULT tells where it is.

    A search that comes to its end here is noted as such.
    """
    progress = Progress(request, checked)
    run = progress.tracking.run
    status: Status = "FAILED"
    try:
        result["tracking_uri"] = run.tracking_uri
        yield progress
        status = "FINISHED"
    except Preempted:
        status = "KILLED"
        raise
    finally:
        progress.finish(status, checked.config.tracking.wait_s)
        report = request.search_dir / REPORT
        result |= {"parent_run_id": run.run_id, "report": str(report) if report.exists() else None}
    shown = {name: result[name] for name in ("parent_run_id", "tracking_uri", "report")}
    write_json(request.search_dir / OUTCOME, shown | {"trials": len(progress.record().trials)})
