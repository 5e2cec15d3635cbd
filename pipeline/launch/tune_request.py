"""What was typed for a search, resolved: its flags, its space, its points, the drives that it holds out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config import Config, require
from pipeline.data.dataset import ShardDataset
from pipeline.data.drives import propose_held_out
from pipeline.errors import nearest
from pipeline.launch.job_request import MODEL_NAME, read_job_request
from pipeline.launch.paths import resolve_path
from pipeline.launch.run_folder import NAME, run_name
from pipeline.launch.setting_flags import split_settings
from pipeline.launch.world_size import WorldRange, read_workers
from pipeline.search.plan import SearchPlan
from pipeline.search.points import read_points
from pipeline.search.presets import PRESETS
from pipeline.search.records import Settings
from pipeline.search.rungs import rungs
from pipeline.search.space import defaults_of, read_space
from pipeline.settings import with_settings
from pipeline.train.metrics import VAL_MIOU

SEARCH = "search."
"""Beginning of the flags that change the space."""
HELD_OUT, STEPS = "data.held_out", "train.steps"
OF_ALL_TRIALS = (
    HELD_OUT, STEPS, "data.train_split", "train.evaluate_every", "train.extended_at", "train.seed",
)  # fmt: skip
"""Settings without which the scores of two trials could not be compared."""


@dataclass(frozen=True)
class TuneFlags:
    """Search settings of the network, its losses or its training; each trial is a run of its own.

    --search.SETTING SPEC changes the space: values a,b,c, a range LOW:HIGH or log:LOW:HIGH, both joined
    by |, or off.
    """

    shards: str
    """Folder or address of the packed data set; its manifest.json lies there."""
    recipe: str | None = None
    """Settings that trials begin from: laptop (the default), camvid, cityscapes-r50, cityscapes-r101."""
    config: str | None = None
    """config.json of a recorded run to begin from; instead of --recipe."""
    space: str = "accm-losses"
    """What is searched: the preset accm-losses (class centers and losses) or recipe (optimizer, batch,
    augmentation), or a YAML file of names and specs."""
    points: str | None = None
    """YAML file with a list of settings to try first, after the defaults, which are always tried."""
    trials: int = 20
    """Trials, repeats left out. Type more to go on with a search that is finished."""
    trial_steps: int | None = None
    """Steps of a trial's full training, where that is not the recipe's train.steps."""
    algorithm: Literal["tpe", "random", "sobol"] = "tpe"
    """What proposes settings: a model of what was good so far, chance, or an even spread."""
    scheduler: Literal["asha", "median", "none"] = "asha"
    """What stops trials early: successive halving, the median of the others, or nothing."""
    reduction: int = 3
    """Of the trials that reach a rung of asha, about one in so many goes on."""
    repeat: int = 0
    """Fresh seeds with which the best trials and the defaults are trained again; the best mean wins."""
    finalists: int = 3
    """How many of the best trials --repeat trains again."""
    hold_out: float = 0.25
    """Share of the training samples, in whole drives, that trials are scored on and not trained on;
    --data.held_out names the drives instead."""
    concurrent: int | None = None
    """Trials at once; as many as the cluster has room for without it."""
    workers: str | None = None
    """Ranks of each trial; 1 without it."""
    name: str | None = None
    """Name of the search; the same name again goes on with it. One is made up without it."""
    runs: str = "~/ccs-runs"
    """Folder of all runs; the search and its trials are in RUNS/NAME."""
    then_train: bool = False
    """Train the best settings with all of the training data and the recipe's train.steps, and register."""
    register: str | None = None
    """Name to register that model under, instead of the recipe's."""
    preflight_only: bool = False
    """Check everything that can be checked, then end without a trial."""


@dataclass(frozen=True)
class TuneRequest:
    """What was typed, resolved."""

    flags: TuneFlags
    config: Config
    """What `--then-train` trains with, but for the best settings."""
    shards: str
    runs_dir: Path
    name: str
    workers: WorldRange
    changes: Mapping[str, str]
    """Setting → spec, as typed by --search.SETTING."""

    @property
    def search_dir(self) -> Path:
        """The search's own folder."""
        return self.runs_dir / self.name

    @property
    def best_name(self) -> str:
        """Name of the run of `--then-train`."""
        return f"{self.name}-best"


def read_tune_request(argv: Sequence[str]) -> TuneRequest:
    """The request that was typed; raises ConfigError, one line."""
    rest, settings = split_settings(argv)
    changes = {n.removeprefix(SEARCH): spec for n, spec in settings.items() if n.startswith(SEARCH)}
    rest += [f"--{name}={value}" for name, value in settings.items() if not name.startswith(SEARCH)]
    typed = read_job_request(TuneFlags, rest)
    flags, config = typed.flags, typed.config
    require(
        not typed.runs, f"--runs {flags.runs}: a search is kept in a folder that all nodes mount; type one"
    )
    require(
        not config.data.unindexed_train,
        "a search holds drives out of the training data, whose samples unindexed shards do not list; index "
        "them with python jobs/shards.py index",
    )
    workers = read_workers(flags.workers) or WorldRange(1, 1)
    require(
        workers.least == workers.most,
        f"--workers {flags.workers}: all trials of a search have as many ranks; type one number",
    )
    require(
        flags.concurrent is None or flags.concurrent >= 1,
        f"--concurrent must be at least 1, got {flags.concurrent}",
    )
    _refuse_idle_flags(flags, config)
    name = run_name(flags.name, config) if flags.name is not None else f"tune-{run_name(None, config)}"
    request = TuneRequest(flags, config, typed.shards, typed.runs_dir, name, workers, changes)
    require(
        not flags.then_train or NAME.fullmatch(request.best_name) is not None,
        f"--name {name} is too long for --then-train, which trains {request.best_name}; type a shorter one",
    )
    return request


def _refuse_idle_flags(flags: TuneFlags, config: Config) -> None:
    """Raises ConfigError for a flag that would do nothing beside the others."""
    for name, is_idle, remedy in (
        ("register", not flags.then_train, ", or type --then-train, whose model it names"),
        ("finalists", not flags.repeat, ", or type --repeat, which trains them again"),
        ("reduction", flags.scheduler != "asha", ", or type --scheduler asha, whose rungs it makes"),
        ("hold_out", bool(config.data.held_out), ", as --data.held_out names the drives"),
    ):
        is_typed = getattr(flags, name) != getattr(TuneFlags, name)
        require(not (is_idle and is_typed), f"leave out --{name.replace('_', '-')}{remedy}")


def plan_search(request: TuneRequest, training: ShardDataset) -> tuple[SearchPlan, Config]:
    """The plan, and the config that trials begin from; raises ConfigError for what cannot be searched."""
    flags, config = request.flags, request.config
    require(0.0 < flags.hold_out <= 0.5, f"--hold-out {flags.hold_out}: type a share above 0, at most 0.5")
    drives = config.data.held_out_drives or propose_held_out(
        training.keys(), flags.hold_out, config.train.seed
    )
    changed = {HELD_OUT: ",".join(drives), MODEL_NAME: ""}
    if flags.trial_steps is not None:
        changed[STEPS] = str(flags.trial_steps)
    base = with_settings(config, changed)
    space = read_space(base, _named_space(flags.space), request.changes, training.classes.num_classes)
    searched = {dimension.name for dimension in space}
    for name in OF_ALL_TRIALS:
        require(name not in searched, f"--search.{name}: trials of a search have the same one; leave it out")
    plan = SearchPlan(
        space=space,
        defaults=defaults_of(base, space),
        num_trials=flags.trials,
        points=read_points(base, Path(resolve_path("--points", flags.points)), space) if flags.points else (),
        budget_steps=base.train.steps,
        evaluate_every=base.train.evaluate_every,
        algorithm=flags.algorithm,
        scheduler=flags.scheduler,
        reduction=flags.reduction,
        seed=base.train.seed,
        repeat=flags.repeat,
        finalists=flags.finalists,
        metric=VAL_MIOU,
        held_out=drives,
    )
    rungs(plan)  # refuses a schedule without any
    return plan, base


def _named_space(typed: str) -> str:
    """A preset, or the absolute path of a file; a word that nearly is a preset is told as one misspelt."""
    is_word = not {".", "/"} & set(typed)
    if typed in PRESETS or (is_word and nearest(typed, PRESETS)):
        return typed
    return resolve_path("--space", typed)


def at_full_budget(request: TuneRequest, settings: Settings) -> Config:
    """The config of `--then-train`: the best settings, all training data, and the whole number of steps."""
    return with_settings(request.config, dict(settings) | {HELD_OUT: ""})
