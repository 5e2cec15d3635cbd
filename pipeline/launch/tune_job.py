"""The tune job: from what was typed to the best settings, cheap checks first.

`jobs/tune_cityscapes.py` is its command.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipeline.errors import PipelineError
from pipeline.launch.job import Result
from pipeline.launch.ray_cluster import joined_workers
from pipeline.launch.run_folder import identity, lease, write_json
from pipeline.launch.stop_signals import StopSignals
from pipeline.launch.train_job import train
from pipeline.launch.tune_checks import CheckedSearch, check_search, refuse_other_search
from pipeline.launch.tune_folder import TrialReader, TuneFolder
from pipeline.launch.tune_request import TuneRequest, at_full_budget, read_tune_request
from pipeline.search.agenda import is_complete
from pipeline.search.leaderboard import gain, winner
from pipeline.search.plan import SearchPlan
from pipeline.search.records import Settings, Trial
from pipeline.search.table import setting_words

logger = logging.getLogger(__name__)

FIELDS = (
    "trials", "stopped", "failed", "best", "best_trial", "best_miou", "defaults_miou", "parent_run_id",
    "tracking_uri", "report", "concurrent", "held_out", "shards", "trained_run", "trained_miou", "model_uri",
)  # fmt: skip
"""The tune job's own keys of its RESULT line."""

TRIAL_SETUP = "pipeline.launch.warm_up.load_at_once"
"""What every worker process of the job runs first."""


def tune(result: Result, argv: Sequence[str]) -> None:
    """Runs the tune job, filling in its RESULT; raises a PipelineError for what cannot be."""
    request = read_tune_request(argv)
    result["shards"] = request.shards
    checked = check_search(request)
    result["held_out"] = list(checked.plan.held_out)
    _search(request, checked, result)
    if request.flags.preflight_only:
        return
    settings = _tell_best(request, checked.plan, result)
    if request.flags.then_train:
        _train_best(request, settings, result)


def _search(request: TuneRequest, checked: CheckedSearch, result: Result) -> None:
    """Bring the search to its end, whatever there is of it already."""
    folder = TuneFolder(request.search_dir)
    reader = TrialReader(folder, checked.plan)
    with lease(folder.path), StopSignals() as signals:
        refuse_other_search(folder, checked)
        if is_complete(checked.plan, checked.config, reader.trials()):
            _settle(request, checked, result)
            return
        with joined_workers(request.workers, checked.config, TRIAL_SETUP, signals) as workers:
            # Ray's Tune takes seconds to import, and reads an environment that is set by now.
            from pipeline.launch.tune_run import run_trials  # noqa: PLC0415

            try:
                run_trials(request, checked, workers, signals, result)
            finally:
                result |= _counts(reader.trials())


def _settle(request: TuneRequest, checked: CheckedSearch, result: Result) -> None:
    """A search whose trials are all over: nothing to train, but MLflow may still lack what it gave."""
    # MLflow takes seconds to import.
    from pipeline.launch.tune_progress import followed  # noqa: PLC0415
    from pipeline.tracking.mlflow_sync import ship_pending  # noqa: PLC0415

    logger.info("[done]  search=%s is finished already, with this space: nothing to do", request.name)
    folder = TuneFolder(request.search_dir)
    outcome = folder.outcome()
    # Else its driver was killed between the last trial and its own end.
    if outcome is None or outcome["trials"] != len(folder.orders()):
        with followed(request, checked, result):
            return
    result |= {name: outcome[name] for name in ("parent_run_id", "tracking_uri", "report")}
    pending = ship_pending(request.search_dir, checked.config.tracking.wait_s)
    if pending:
        logger.info("[event] %s", pending)


def _counts(trials: Sequence[Trial]) -> dict[str, int]:
    """How many trials there are, and what became of them, as the RESULT has it."""
    ended = {state: sum(trial.state == state for trial in trials) for state in ("stopped", "failed")}
    return {"trials": len(trials)} | ended


def _tell_best(request: TuneRequest, plan: SearchPlan, result: Result) -> Settings:
    """The best settings, said and put into the RESULT; raises PipelineError where none was trained whole."""
    folder = TuneFolder(request.search_dir)
    record = TrialReader(folder, plan).record(request.name, {})
    result |= _counts(record.trials)
    best = winner(record)
    if best is None or best.score is None:
        raise PipelineError(
            f"no trial of {request.name} was trained to its end; their logs are in {folder.trials_dir}/*/log"
        )
    settings, better = best.trial.settings, gain(record, best)
    result |= {"best": dict(settings), "best_trial": best.trial.number, "best_miou": best.score}
    result["defaults_miou"] = None if better is None else best.score - better * plan.sign
    logger.info(
        "[done]  best mIoU %.3f%s%s: trial %03d, %s%s  report=%s",
        best.score, f", mean of {best.fresh_seeds}" if best.is_repeated else "",
        f", {better:+.3f} over the defaults" if better is not None and best.trial.number else "",
        best.trial.number, best.trial.name, "" if best.trial.number else ", which nothing beat",
        result["report"],
    )  # fmt: skip
    words = setting_words(settings, plan.defaults)
    if words:
        logger.info("[next]  %s", words)
    return settings


def _train_best(request: TuneRequest, settings: Settings, result: Result) -> None:
    """Train the best settings from scratch with all of the data, as the train job does, and register."""
    path = request.search_dir / "best.json"
    write_json(path, identity(at_full_budget(request, settings), {}))
    words = ["--shards", request.shards, "--config", str(path), "--name", request.best_name]
    trained: Result = dict.fromkeys(("miou", "model_uri"))
    try:
        train(trained, [*words, "--runs", str(request.runs_dir)])
    finally:
        result["trained_run"] = request.best_name
        result |= {"trained_miou": trained["miou"], "model_uri": trained["model_uri"]}
