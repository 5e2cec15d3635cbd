"""What can be known to be wrong with a search before a process is started."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pipeline.config import Config
from pipeline.data.dataset import ShardDataset
from pipeline.errors import ConfigError, WorldStateError
from pipeline.launch.preflight import FLOAT_BYTES, check_run, check_space, count_parameters
from pipeline.launch.run_folder import identity, refuse_other_run, with_architecture, write_json
from pipeline.launch.tune_folder import PLAN, TuneFolder
from pipeline.launch.tune_request import TuneRequest, plan_search
from pipeline.launch.workers import Workers
from pipeline.search.agenda import num_planned
from pipeline.search.corners import check_corners
from pipeline.search.plan import SearchPlan, plan_differences, plan_from_json, plan_to_json
from pipeline.settings import with_settings

KEPT_COPIES = 4
"""Of the parameters, in the one checkpoint of a trial that is over: weights, averaged ones, two moments."""


@dataclass(frozen=True)
class CheckedSearch:
    """A search that can start."""

    plan: SearchPlan
    config: Config
    """What trials begin from."""
    manifest_id: str

    def identity(self) -> dict[str, Any]:
        """What the search's name stands for beside its plan."""
        return identity(self.config, {"manifest_id": self.manifest_id})


def check_search(request: TuneRequest) -> CheckedSearch:
    """A search whose every corner makes a model; raises a PipelineError for what forbids it."""
    training = ShardDataset.open(request.shards, request.config.data.listed_split, request.config.data.store)
    plan, config = plan_search(request, training)
    if request.flags.then_train:
        ShardDataset.open(request.shards, config.data.val_split, config.data.store).preflight()
    config = with_architecture(config, request.search_dir)
    num_classes = training.classes.num_classes

    def check(made: Config) -> None:
        made.train.micro_batch_per_rank(request.workers.most)
        count_parameters(made, num_classes)

    check_corners(config, plan.space, check)
    for number, point in enumerate(plan.points, start=1):
        try:
            check(with_settings(config, point))
        except ConfigError as error:
            raise ConfigError(f"--points, settings {number}: {error}") from error
    checked = check_run(config, request.shards, request.search_dir)
    to_come = max(num_planned(plan) - len(TuneFolder(request.search_dir).orders()), 0)
    kept_bytes = to_come * checked.parameters * FLOAT_BYTES * KEPT_COPIES  # the best checkpoint of each
    check_space(request.search_dir, checked.bytes_needed + kept_bytes)
    return CheckedSearch(plan, config, training.manifest.id)


def refuse_other_search(folder: TuneFolder, checked: CheckedSearch) -> None:
    """Raises WorldStateError where the name stands for another search, or for a run."""
    path = folder.path / PLAN
    if not path.exists():
        if (folder.path / "config.json").exists():
            raise WorldStateError(f"{folder.path.name} is the name of a run; choose another --name")
        return
    refuse_other_run(folder.path, checked.identity())
    try:
        held = plan_from_json(json.loads(path.read_text(encoding="utf-8"))["plan"])
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise WorldStateError(f"{path} cannot be read ({error}); choose another --name") from error
    differences = plan_differences(held, checked.plan)
    if differences:
        raise WorldStateError(
            f"search {folder.path.name} was made otherwise ({'; '.join(differences)}); type the same, or "
            "choose another --name"
        )


def write_plan(folder: TuneFolder, checked: CheckedSearch) -> None:
    """Note what the name stands for from now on."""
    write_json(folder.path / PLAN, {"plan": plan_to_json(checked.plan)})
    write_json(folder.path / "config.json", checked.identity())


def trials_at_once(request: TuneRequest, workers: Workers, num_ranks: int) -> int:
    """Trials at once where the nodes have room for so many ranks.

    Raises ConfigError where more were typed: they would wait for each other's CPUs for ever.
    """
    fits = num_ranks // workers.num
    each = f"each takes {workers.num} x {workers.cpus_each} CPUs{' and GPUs' if workers.use_gpu else ''}"
    if fits == 0:
        raise ConfigError(f"no trial fits the nodes of this cluster: {each}; type fewer --workers")
    typed = request.flags.concurrent
    if typed is not None and typed > fits:
        raise ConfigError(f"--concurrent {typed} does not fit: {each}; --concurrent {fits} fits")
    return min(typed or fits, request.flags.trials)
