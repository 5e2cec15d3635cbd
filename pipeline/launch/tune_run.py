"""A search from its first trial to its last: what the driver does around Ray Tune."""

from __future__ import annotations

import logging
import secrets

from pipeline.launch.job import Result
from pipeline.launch.ray_cluster import check_shared
from pipeline.launch.room import ranks_now
from pipeline.launch.stop_signals import StopSignals
from pipeline.launch.tune_checks import CheckedSearch, trials_at_once, write_plan
from pipeline.launch.tune_conductor import Search
from pipeline.launch.tune_folder import TuneFolder
from pipeline.launch.tune_progress import followed
from pipeline.launch.tune_request import TuneRequest
from pipeline.launch.tune_search import run_search
from pipeline.launch.workers import Workers

logger = logging.getLogger(__name__)


def run_trials(
    request: TuneRequest, checked: CheckedSearch, workers: Workers, signals: StopSignals, result: Result
) -> None:
    """Trains all trials that are planned and not over; nothing with `--preflight-only`.

    Raises Preempted after a stop.
    """
    plan, folder = checked.plan, TuneFolder(request.search_dir)
    check_shared(folder.path, request.shards)
    concurrent = result["concurrent"] = trials_at_once(request, workers, ranks_now(workers).in_all)
    logger.info(
        "[tune] search=%s %d trials of %d steps, %d at once with %d %s each, %s and %s over %d settings, "
        "scored on %s",
        request.name, plan.num_trials, plan.budget_steps, concurrent, workers.num,
        "GPUs" if workers.use_gpu else "ranks on CPUs", plan.algorithm, plan.scheduler, len(plan.space),
        ", ".join(plan.held_out),
    )  # fmt: skip
    if request.flags.preflight_only:
        return
    write_plan(folder, checked)
    search = Search(
        folder, plan, checked.config, request.shards, checked.manifest_id, workers, concurrent,
        job=secrets.token_hex(3),
    )  # fmt: skip
    with followed(request, checked, result) as progress:
        progress.concurrent = concurrent
        run_search(search, signals.stop_wanted, progress.look)
