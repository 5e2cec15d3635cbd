"""What `make train` runs: data packed once, a local Ray head, one submitted job, and the end of all of it.

The exit code is the job's own, taken from its RESULT line, which is the last line here too: Ray
would turn every failure into 1. Ctrl-C lets the job checkpoint; a second one ends at once.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.data.store.address import is_address
from pipeline.errors import ConfigError, Preempted, WorldStateError
from pipeline.launch.child_job import run_child
from pipeline.launch.command_line import parse_flags
from pipeline.launch.job import Result, run_job, tell
from pipeline.launch.run_folder import finished_result
from pipeline.launch.stop_signals import StopSignals
from pipeline.launch.supervised_job import SupervisedJob, Supervisor
from pipeline.launch.train_job import FIELDS, Request, git_commit, read_request
from pipeline.launch.workers import Room, plan_workers
from pipeline.tracking.server import has_pending
from pipeline.train.checkpoint import list_committed, step_of

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_RUNS = "runs"
"""The Makefile's RUNS, in the checkout."""
UPLOADED = ("pipeline", "jobs")
"""Folders of the checkout that a job needs."""
STOP_WAIT_S = 600
"""Longest that a stopped job may take to end its step and checkpoint."""


@dataclass(frozen=True)
class MakeFlags:
    """Pack a data set once, train on it through a local Ray head, and say what to type next."""

    cityscapes: str = ""
    """A tree in Cityscapes' layout; the generated mini city without it."""
    recipe: str = ""
    """Settings to begin from; the train job's default without it."""
    workers: str = ""
    """Ranks; up to two without it."""
    runs: str = DEFAULT_RUNS
    """Folder of data sets and runs."""


@dataclass(frozen=True)
class Plan:
    """What will be run: the request, as the train job will read it, and where its pictures lie."""

    request: Request
    words: list[str]
    tree: Path
    generated: bool
    variables: str
    """What `make` must be told to find the same runs: `RUNS=…`, or nothing."""


def make_plan(flags: MakeFlags, more: Sequence[str]) -> Plan:
    """The plan for what was typed; raises ConfigError before anything is packed or started."""
    if is_address(flags.runs):
        raise ConfigError(
            f"RUNS={flags.runs}: data sets are kept there too, so it is a folder; "
            "python jobs/train_cityscapes.py takes an address as --runs"
        )
    runs = _absolute(flags.runs)
    generated = not flags.cityscapes
    tree = runs / "mini-city" if generated else _absolute(flags.cityscapes)
    if not generated and not tree.is_dir():
        raise ConfigError(
            f"no such folder: CITYSCAPES={flags.cityscapes}; type the tree with leftImg8bit/ in it"
        )
    words = ["--shards", str(runs / "shards" / _shards_name(tree, generated=generated)), "--runs", str(runs)]
    words += ["--recipe", flags.recipe] if flags.recipe else []
    words += ["--workers", flags.workers] if flags.workers else []
    words += more
    request = read_request(words)
    if not any(word.partition("=")[0] == "--name" for word in more):
        words += ["--name", request.name]  # made up here, to be able to say how to go on
    variables = "" if runs == ROOT / DEFAULT_RUNS else f"RUNS={shlex.quote(str(runs))}"
    return Plan(request, words, tree, generated, variables)


def own_room() -> Room:
    """What the head of `make train` will have."""
    return Room(cpus=len(os.sched_getaffinity(0)), gpus=torch.cuda.device_count())


def _absolute(text: str) -> Path:
    """The path without `..`, which would be its name; links that were given on purpose stay."""
    try:
        return Path(os.path.abspath(Path(text).expanduser()))  # noqa: PTH100 - resolve() would follow links
    except RuntimeError as error:  # ~ of a user who is not there
        raise ConfigError(f"{text}: there is no such user; type the whole path") from error


def _shards_name(tree: Path, *, generated: bool) -> str:
    """The name of the folder of a tree's shards: trees of one name at two places have two."""
    if generated:
        return tree.name
    return f"{tree.name}-{hashlib.sha256(os.fsencode(tree)).hexdigest()[:6]}"


def make_train(result: Result, flags: MakeFlags, more: Sequence[str]) -> None:
    """Runs the plan, filling in the RESULT with the job's own."""
    plan = make_plan(flags, more)
    if (
        finished_result(plan.request.run_dir, plan.request.config.train.steps) is None
    ):  # drawing, packing and a head take minutes
        plan_workers(plan.request.workers, plan.request.config, own_room())
    with StopSignals() as signals:
        result |= _prepare(plan, signals)
        if result["exit_code"] == 0:
            _say(f"[make]  run {plan.request.name}: starting a Ray head of its own")
            result |= Supervisor(supervised_job(plan), _say, signals.stop_wanted).run()
    _say_next(plan, result)


def _prepare(plan: Plan, signals: StopSignals) -> Result:
    """Status and exit code of drawing the mini city, where it is not there yet, and of packing."""
    if plan.generated and not plan.tree.exists():
        drawn = _run_job("make_mini_city", ["--out", str(plan.tree)], signals)
        if drawn["exit_code"] != 0:
            return {key: drawn[key] for key in ("status", "exit_code")}
    packed = _run_job("pack_cityscapes", ["--root", str(plan.tree), "--out", plan.request.shards], signals)
    _explain_refusal(packed, Path(plan.request.shards))
    return {key: packed[key] for key in ("status", "exit_code")}


def _explain_refusal(packed: Result, shards: Path) -> None:
    """What to type where packing refused its --out, which nobody typed here."""
    if packed["status"] == "world_state_error":
        tell(f"make train: --out is {shards} here; RUNS=FOLDER packs and trains in another folder")
    elif packed["status"] == "dataset_error" and not packed.get("refused") and shards.exists():
        tell(f"make train: --out is {shards} here; remove that folder, or type another RUNS=FOLDER")


def _run_job(job: str, words: Sequence[str], signals: StopSignals) -> Result:
    """The RESULT of a job that needs no cluster, its lines shown as they come."""
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *words]

    def show(line: str) -> None:
        _say(line.partition("; now type")[0])  # the next job follows by itself

    code, result = run_child(command, show, signals.stop_wanted)
    if signals.stop_wanted():
        raise Preempted("stopped before training began; type the same again to begin")
    if result is None:
        raise WorldStateError(f"{job} ended with {code} and without a RESULT line")
    return result


def supervised_job(plan: Plan) -> SupervisedJob:
    """The train job as it is submitted, each time with the same `--name`."""
    environment = {
        "RAY_JOB_STOP_SIGNAL": "SIGTERM",
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
        "CCS_GIT_COMMIT": git_commit(),
    }

    def newest_step() -> int:
        return max(map(step_of, list_committed(plan.request.run_dir)), default=0)

    command = ["python", "jobs/train_cityscapes.py", *plan.words]
    return SupervisedJob(plan.request.name, command, environment, own_room().cpus, copy_code, newest_step)


def copy_code(folder: Path) -> Path:
    """The folder, with a copy of what a job needs and nothing else.

    Ray would upload whatever lies in the checkout, be it a data set or all runs.
    """
    for name in UPLOADED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _say_next(plan: Plan, result: Result) -> None:
    """What to type next: to look, to predict, to go on."""
    preempted = result["exit_code"] == Preempted.exit_code
    if preempted or has_pending(plan.request.run_dir):
        words = ["make train", "" if plan.generated else f"CITYSCAPES={shlex.quote(str(plan.tree))}"]
        words += [plan.variables, f"ARGS={shlex.quote(shlex.join(plan.words[4:]))}"]
        why = "goes on from the checkpoint" if preempted else "ships what MLflow lacks, once it answers"
        _say(f"[next]  {' '.join(filter(None, words))}   {why}")
    if result["exit_code"] != 0 or not result["model_uri"]:
        return
    look = " ".join(filter(None, ["make ui", plan.variables]))
    _say(f"[next]  {look}   shows curves, pictures and the registered models")
    pictures = sorted((plan.tree / "leftImg8bit" / plan.request.config.data.val_split).glob("*/*.*"))
    if pictures:
        predict = [_shown(Path(sys.executable)), "jobs/predict.py", "--model", str(result["model_uri"])]
        predict += [_shown(pictures[0]), "--out", _shown(plan.request.runs_dir / "predictions")]
        if "MLFLOW_TRACKING_URI" not in os.environ:
            predict += ["--runs", _shown(plan.request.runs_dir)]
        _say(f"[next]  {shlex.join(predict)}")


def _shown(path: Path) -> str:
    """The path as one types it in the checkout."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str]) -> int:
    """The exit code of `make train`: its variables as flags, then `--`, then ARGS."""
    split = list(argv).index("--") if "--" in argv else len(argv)

    def run(result: Result) -> None:
        make_train(result, parse_flags(MakeFlags, argv[:split]), argv[split + 1 :])

    return run_job("train", run, FIELDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
