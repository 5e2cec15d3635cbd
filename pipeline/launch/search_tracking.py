"""A search as MLflow and a reader see it: its run, a run below it for each trial, pictures and the report.

All is told by the search's record, again and again: `update` brings what is shown to what the record says,
so a driver that was killed leaves nothing to be remembered. It goes by the journals and the thread that
training runs have; nothing here waits for a server, and none of it can end a search.

The x-axis of the search's own curves is the optimizer steps of all its trials together.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.config import Config
from pipeline.config.model_names import backbone_name
from pipeline.launch.run_context import clear_errors
from pipeline.search.budget_picture import budget
from pipeline.search.curve_picture import trial_label
from pipeline.search.importance import Importances, importances
from pipeline.search.leaderboard import gain, leaderboard, winner
from pipeline.search.records import SearchRecord, Trial, to_json
from pipeline.search.search_report import pictures, report_page, verdict
from pipeline.settings import config_hash, flatten, to_dict
from pipeline.tracking.html_page import write_page
from pipeline.tracking.incidents import CLOSED
from pipeline.tracking.journal import COMMIT, FOLDER, START, Journal
from pipeline.tracking.mlflow_store import BACKBONE, RunDescription, Status
from pipeline.tracking.mlflow_sync import MlflowRun
from pipeline.tracking.pending import sent_run_id
from pipeline.tracking.report import REPORT
from pipeline.tracking.run_shipper import RunShipper

logger = logging.getLogger(__name__)

REPORT_EVERY_S = 60.0
"""Between two reports while the search goes on; a trial that ends is told of at once."""
PICTURES, RECORD = "pictures", "search-record.json"
STATUSES: dict[str, Status] = {"done": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
"""A trial that was stopped gave all that was asked of it; its tags say by what."""
MOST_NAME_CHARS = 80
IDLE = "idle"
"""Of a setting that the best leaves idle: an earlier best may have had it, and a tag stays."""
LEADERBOARD_COLUMNS = ["rank", "trial", "score", "std", "seeds", "steps", "state", "what varies"]


class SearchTracking:
    """What is shown of a search while a driver works on it; made when its folder is held, ended by `finish`.

    `config_of` gives the config that a trial trains with.
    """

    def __init__(
        self, search: RunDescription, config_of: Callable[[Trial], Config], attempt: str, record: SearchRecord
    ) -> None:
        """Raises WorldStateError for a disk that refuses the journal."""
        self._search, self._config_of = search, config_of
        self.run = MlflowRun.open(search)
        with clear_errors(search.run_dir / FOLDER):
            self._journal = Journal(search.run_dir, attempt)
            self._journal.event(START, budget(record).steps)
        self._trials: dict[int, RunShipper] = {}
        self._sent: dict[int, str] = {}
        self._told: tuple[str, ...] = ()
        self._reported_s = -REPORT_EVERY_S

    def run_id_of(self, number: int) -> str:
        """The MLflow run of a trial; empty where it has none yet."""
        child = self._trials.get(number)
        return (child.run_id if child else self._sent.get(number)) or ""

    def update(self, record: SearchRecord) -> None:
        """Show what the record says; quick where no trial began or ended since, and no report is due."""
        for trial in record.trials:
            self._follow(trial)
        states = tuple(trial.state for trial in record.trials)
        if states != self._told:
            self._told = states
            self._tell(record)
        if time.monotonic() - self._reported_s >= REPORT_EVERY_S:
            self._report(record)

    def finish(self, record: SearchRecord, status: Status, timeout_s: float) -> str | None:
        """Show how it ended and end its run; None, or one line about what MLflow does not hold yet.

        Trials that are still running are ended as killed; they keep their runs, which a later driver of the
        search goes on with.
        """
        for trial in record.trials:
            self._follow(trial)
        self._tell(record)
        self._report(record)
        self._note_end(budget(record).steps)
        self._journal.close()
        return self.run.finish(status, timeout_s)

    def _note_end(self, step: int) -> None:
        """Tell this journal from that of a driver that was killed, which is an incident of the search."""
        try:
            self._journal.event(CLOSED, step)
        except OSError as error:
            logger.warning("[event] the search's journal lacks its end: %s", error.strerror or error)

    def _follow(self, trial: Trial) -> None:
        """Begin or end the trial's run; what MLflow has whole from an earlier driver stays as it is."""
        assert trial.run_dir, trial  # else it would be taken for the search itself
        run_dir = self._search.run_dir / trial.run_dir
        child = self._trials.get(trial.number)
        if child is None:
            if trial.is_over and self._is_sent(trial.number, run_dir):
                return
            child = self.run.child(self._description(trial))
            self._trials[trial.number] = child
        if trial.is_over and child.status is None:
            child.set_tags(_tags(trial))
            if (run_dir / REPORT).exists():
                child.add_artifact(run_dir / REPORT)
            child.close(STATUSES[trial.state])

    def _is_sent(self, number: int, run_dir: Path) -> bool:
        if number not in self._sent:
            run_id = sent_run_id(run_dir, self.run.tracking_uri)
            if run_id is not None:
                self._sent[number] = run_id
        return number in self._sent

    def _description(self, trial: Trial) -> RunDescription:
        config = self._config_of(trial)
        return dataclasses.replace(
            self._search,
            run_dir=self._search.run_dir / trial.run_dir,
            run_name=shortened(f"{trial_label(trial.number)} {trial.name}"),
            params=flatten(config) | {BACKBONE: backbone_name(config.model.backbone)},
            config=to_dict(config),
            tags={**self._search.tags, "config_hash": config_hash(config), **_tags(trial)},
            note="",
        )

    def _tell(self, record: SearchRecord) -> None:
        """The search's own numbers, tables, note and tags."""
        spent, best, found = budget(record), winner(record), importances(record)
        over = sum(trial.is_over for trial in record.searched())
        values = {"search/trials_over": float(over), "search/share_of_full_training": spent.share}
        if best is not None and best.score is not None:
            values[f"search/best_{record.metric.rpartition('/')[2]}"] = best.score
            names = [dimension.name for dimension in record.space]
            settings = {f"best.{name}": str(best.trial.settings.get(name, IDLE)) for name in names}
            self.run.set_tags({"search.best_trial": trial_label(best.trial.number), **settings})
        if best is not None and (better := gain(record, best)) is not None:
            values["search/gain_over_defaults"] = better
        try:
            self._journal.metrics(spent.steps, values)
            self._tables(record, found, spent.steps)
            self._journal.event(COMMIT, spent.steps)
        except OSError as error:
            logger.warning(
                "[event] the search's journal lacks its newest numbers: %s", error.strerror or error
            )
        self.run.set_note(
            f"{verdict(record)}\n\n{over} of {record.num_trials} trials are over. Report: {REPORT}"
        )

    def _tables(self, record: SearchRecord, found: Importances, step: int) -> None:
        rows = [
            [
                standing.rank, trial_label(standing.trial.number), standing.score, standing.spread,
                standing.seeds, standing.step, standing.trial.state, standing.trial.name,
            ]
            for standing in leaderboard(record)
        ]  # fmt: skip
        self._journal.table("search/leaderboard", step, LEADERBOARD_COLUMNS, rows)
        shares = [[one.name, round(one.share, 4)] for one in found.settings]
        self._journal.table("search/importance", step, ["setting", "explains"], shares)
        best = winner(record)
        if best is not None:
            names = [dimension.name for dimension in record.space]
            rows = [[name, best.trial.settings.get(name), record.defaults.get(name)] for name in names]
            self._journal.table("search/best_settings", step, ["setting", "best", "default"], rows)

    def _report(self, record: SearchRecord) -> None:
        """Report, record and pictures, in the search's folder and among the artifacts of its run."""
        found = importances(record)
        run_dir = self._search.run_dir
        files: dict[Path, Callable[[], str]] = {
            run_dir / REPORT: lambda: report_page(record, found),
            run_dir / RECORD: lambda: json.dumps(to_json(record), indent=1),
        }
        for name, drawing in pictures(record, found).items():
            files[run_dir / PICTURES / f"{name}.svg"] = drawing.file
        for path, make in files.items():
            written = write_page(path, make)
            if written is not None:
                self.run.add_artifact(written, PICTURES if path.parent.name == PICTURES else "")
        self._reported_s = time.monotonic()


def shortened(name: str) -> str:
    """A name that a table of runs has room for."""
    return name if len(name) <= MOST_NAME_CHARS else name[: MOST_NAME_CHARS - 1].rstrip(" ·") + "…"


def _tags(trial: Trial) -> dict[str, str]:
    """What the table of runs shows of a trial beside its scores."""
    tags = {"search.trial": trial_label(trial.number), "search.state": trial.state}
    if trial.reason:
        tags["search.reason"] = trial.reason
    if trial.repeats is not None:
        tags["search.repeats"] = trial_label(trial.repeats)
    return tags
