"""The tune job: from what was typed to the best settings, cheap checks first.

`jobs/tune_cityscapes.py` is its command.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from pipeline.errors import PipelineError
from pipeline.launch.job import Result
from pipeline.launch.ray_cluster import connected, local_room
from pipeline.launch.run_folder import identity, lease, write_json
from pipeline.launch.stop_signals import StopSignals
from pipeline.launch.train_job import WORKER_SETUP, train
from pipeline.launch.tune_checks import CheckedSearch, check_search, refuse_other_search
from pipeline.launch.tune_folder import TrialReader, TuneFolder
from pipeline.launch.tune_request import TuneRequest, at_full_budget, read_tune_request
from pipeline.launch.workers import plan_workers
from pipeline.search.agenda import best_trial, is_complete, mean_of_seeds
from pipeline.search.plan import SearchPlan
from pipeline.search.records import Settings, Trial
from pipeline.search.table import setting_words

logger = logging.getLogger(__name__)

FIELDS = (
    "trials", "stopped", "failed", "best", "best_trial", "best_miou", "defaults_miou", "parent_run_id",
    "tracking_uri", "report", "concurrent", "held_out", "shards", "trained_run", "trained_miou", "model_uri",
)  # fmt: skip
"""The tune job's own keys of its RESULT line."""


def tune(result: Result, argv: Sequence[str]) -> None:
    """Runs the tune job, filling in its RESULT; raises a PipelineError for what cannot be."""
    request = read_tune_request(argv)
    result["shards"] = request.shards
    checked = check_search(request)
    result["held_out"] = list(checked.plan.held_out)
    _search(request, checked, result)
    if request.flags.preflight_only:
        return
    folder = TuneFolder(request.search_dir)
    settings = _tell_best(checked.plan, folder, result)
    if request.flags.then_train:
        _train_best(request, folder, settings, result)


def _search(request: TuneRequest, checked: CheckedSearch, result: Result) -> None:
    """Bring the search to its end, whatever there is of it already."""
    folder = TuneFolder(request.search_dir)
    reader = TrialReader(folder, checked.plan)
    with lease(folder.path), StopSignals() as signals:
        refuse_other_search(folder, checked)
        if is_complete(checked.plan, checked.config, reader.trials()):
            logger.info("[done]  search=%s is finished already, with this space: nothing to do", request.name)
            return
        room_here = local_room()
        if room_here is not None:  # a head takes many seconds to start
            plan_workers(request.workers, checked.config, room_here)
        with connected(WORKER_SETUP) as room:
            signals.listen()
            workers = plan_workers(request.workers, checked.config, room)
            # Ray's Tune takes seconds to import, and reads an environment that is set by now.
            from pipeline.launch.tune_run import run_trials  # noqa: PLC0415

            try:
                run_trials(request, checked, workers, signals, result)
            finally:
                result |= _counts(reader.trials())


def _counts(trials: Sequence[Trial]) -> dict[str, int]:
    """How many trials there are, and what became of them, as the RESULT has it."""
    ended = {state: sum(trial.state == state for trial in trials) for state in ("stopped", "failed")}
    return {"trials": len(trials)} | ended


def _tell_best(plan: SearchPlan, folder: TuneFolder, result: Result) -> Settings:
    """The best settings, said and put into the RESULT; raises PipelineError where none was trained whole."""
    trials = TrialReader(folder, plan).trials()
    result |= _counts(trials)
    found = best_trial(plan, trials)
    if found is None:
        raise PipelineError(
            f"no trial of {folder.path.name} was trained to its end; their logs are in "
            f"{folder.trials_dir}/*/log"
        )
    best, score = found
    defaults = mean_of_seeds(plan, trials[0], trials) * plan.sign if trials[0].points else None
    result |= {"best": dict(best.settings), "best_trial": best.number, "best_miou": score}
    result["defaults_miou"] = defaults
    seeds = f", mean of {1 + plan.repeat} seeds" if plan.repeat else ""
    against = "" if defaults is None else f", the defaults {defaults:.3f}"
    logger.info("[done]  best mIoU %.3f%s%s: trial %03d, %s", score, seeds, against, best.number, best.name)
    words = setting_words(best.settings, plan.defaults)
    if words:
        logger.info("[next]  %s", words)
    return best.settings


def _train_best(request: TuneRequest, folder: TuneFolder, settings: Settings, result: Result) -> None:
    """Train the best settings from scratch with all of the data, as the train job does, and register."""
    path = folder.path / "best.json"
    write_json(path, identity(at_full_budget(request, settings), {}))
    name = f"{request.name}-best"
    words = ["--shards", request.shards, "--config", str(path), "--name", name]
    trained: Result = dict.fromkeys(("miou", "model_uri"))
    try:
        train(trained, [*words, "--runs", str(request.runs_dir)])
    finally:
        result["trained_run"] = name
        result |= {"trained_miou": trained["miou"], "model_uri": trained["model_uri"]}
