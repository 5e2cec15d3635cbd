"""One run of the study, in a process of its own: the pipeline's `fit()`, and the row that it leaves.

    python -m study.one_run WORK/runs/KEY/spec.json LOCK

It holds its run by the file lock that it was given as descriptor LOCK, for as long as it lives. It ends
after a step, with a checkpoint, when it is told to, and when the process that started it is gone.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from pipeline.config import Config
from pipeline.errors import NonFiniteLossError
from pipeline.launch.fence import begin_attempt
from pipeline.launch.run_context import JournaledContext
from pipeline.launch.stop_signals import StopSignals
from pipeline.settings import from_dict
from pipeline.tracking import journal
from pipeline.train import checkpoint, metrics
from pipeline.train.loop import fit
from pipeline.train.model_card import MODEL_CARD
from pipeline.world import World
from study.rows import append_row

STOPPED = 75
MODEL = "model"
"""Folder of a run that holds its last weights, where they are kept."""
_NO_NUMBER = ("data/", "checkpoint/", metrics.SAMPLES_PER_S, metrics.VAL_IOU.format(""))
"""Beginnings of metrics that say nothing of the learning, or that the row has elsewhere."""


@dataclass(frozen=True)
class RunSpec:
    """All that a run is made of."""

    key: str
    variant: str
    losses: str
    seed: int
    left_out: str
    scale: str
    settings: Mapping[str, Any]
    """What was set over the recipe, by dotted name: for people; `config` is what counts."""
    config: Mapping[str, Any]
    shards: str
    """Relative to the work folder."""
    data_id: str
    keep_model: bool
    nice: int

    def folder(self, work: Path) -> Path:
        """The run's own folder."""
        return work / "runs" / self.key


def main(argv: Sequence[str]) -> int:
    """Runs what a spec says; 0 with a row, 75 when it was stopped before."""
    path, lock = Path(argv[0]).resolve(), int(argv[1])
    os.set_inheritable(lock, False)  # loader processes must not hold the run when this one is gone
    spec = RunSpec(**json.loads(path.read_text()))
    os.nice(spec.nice)
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    work, config = path.parents[2], from_dict(spec.config)
    failed = ""
    try:
        if not train(spec, config, work):
            return STOPPED
    except NonFiniteLossError as error:  # it would come again: a result, not an accident
        failed = str(error)
    if spec.keep_model:
        _keep_model(spec.folder(work))
    append_row(work, make_row(spec, config, work, failed))
    shutil.rmtree(spec.folder(work) / "checkpoints", ignore_errors=True)
    return 0


def train(spec: RunSpec, config: Config, work: Path) -> bool:
    """Trains to the end, from where an earlier attempt was; False when it was stopped before."""
    run_dir, parent = spec.folder(work), os.getppid()
    with StopSignals() as signals:

        def stop_wanted() -> bool:
            return signals.stop_wanted() or os.getppid() != parent

        context = JournaledContext(run_dir, World(), begin_attempt(run_dir), stop_wanted=stop_wanted)
        try:
            return fit(config, str(work / spec.shards), run_dir, context).status == "ok"
        finally:
            context.close()


def make_row(spec: RunSpec, config: Config, work: Path, failed: str) -> dict[str, Any]:
    """What the run's journal says, with the last evaluation as the score; none where training broke."""
    head, records = config.model.head, journal.read_journal(spec.folder(work))
    row: dict[str, Any] = {
        "key": spec.key, "variant": spec.variant, "head": head.kind, "losses": spec.losses,
        "fusion": head.fusion if head.kind == "ccs" else "none", "seed": spec.seed,
        "left_out": spec.left_out, "miou": None, "miou_labelled": None, "pixel_accuracy": None, "iou": {},
        "labelled_pixels": {}, "curve": [], "failed": failed, "steps": config.train.steps,
        "scale": spec.scale, "settings": dict(spec.settings), "data": spec.data_id, "shards": spec.shards,
        "wall_s": wall_s(records), "device": device_name(config), "commit": commit(),
        "torch": torch.__version__, "training": training_curve(records),
    }  # fmt: skip
    if not failed:
        points = evaluations(records)
        if not points or points[-1]["step"] != config.train.steps:
            raise RuntimeError(f"{spec.folder(work)}: no evaluation after step {config.train.steps}")
        last = points[-1]
        row |= {name: last[name] for name in ("miou", "miou_labelled", "pixel_accuracy")}
        row |= {"iou": last["iou"], "labelled_pixels": last["labelled_pixels"]}
        row["curve"] = [{k: v for k, v in p.items() if k not in ("iou", "labelled_pixels")} for p in points]
    return row


def evaluations(records: Sequence[journal.Record]) -> list[dict[str, Any]]:
    """Step, scores and IoU by class of every evaluation."""
    points = [r for r in records if isinstance(r, journal.Metrics)]
    scored = {r.step: r.values for r in points if metrics.VAL_MIOU in r.values}
    tables = {r.step: r.rows for r in records if isinstance(r, journal.Table) and r.key == metrics.IOU_TABLE}
    return [
        {
            "step": step,
            "miou": values[metrics.VAL_MIOU],
            "miou_labelled": fmean(iou for _, iou, pixels in tables[step] if pixels),
            "pixel_accuracy": values[metrics.VAL_PIXEL_ACCURACY],
            "iou": {name: iou for name, iou, _ in tables[step] if iou is not None},
            "labelled_pixels": {name: pixels for name, _, pixels in tables[step] if pixels},
        }
        for step, values in sorted(scored.items())
    ]


def training_curve(records: Sequence[journal.Record]) -> list[dict[str, float]]:
    """What training recorded, by step: losses, norms and what the head says of its centers."""
    curve: dict[int, dict[str, float]] = {}
    for record in records:
        if isinstance(record, journal.Metrics) and metrics.VAL_MIOU not in record.values:
            kept = {k: float(f"{v:.5g}") for k, v in record.values.items() if not k.startswith(_NO_NUMBER)}
            if kept:
                curve.setdefault(record.step, {"step": record.step}).update(kept)
    return [curve[step] for step in sorted(curve)]


def wall_s(records: Sequence[journal.Record]) -> float:
    """Seconds of all attempts that could say so themselves; one that was killed could not."""
    told = [r.fields["seconds"] for r in records if isinstance(r, journal.Event) and r.name == "phases"]
    return round(sum(sum(seconds.values()) for seconds in told), 1)


def device_name(config: Config) -> str:
    """What it ran on."""
    if config.launch.use_gpu != "no" and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return str(torch.cpu.get_capabilities().get("cpu_name", platform.machine()))


def commit() -> str:
    """The commit of this checkout, with + where tracked files differ from it; empty outside of git."""
    head = _git("rev-parse", "--short=12", "HEAD")
    return head + ("+" if _git("status", "--porcelain", "-uno", "--", ":/pipeline") else "")


def _git(*words: str) -> str:
    here = Path(__file__).resolve().parent
    try:
        return subprocess.run(
            ["git", *words], capture_output=True, text=True, check=False, cwd=here
        ).stdout.strip()
    except FileNotFoundError:  # a bare machine
        return ""


def _keep_model(run_dir: Path) -> None:
    """Copies the last weights out of the checkpoints, which go once the row is there."""
    newest = checkpoint.newest_checkpoint(run_dir)
    if newest is None:
        return
    kept = run_dir / MODEL
    kept.mkdir(exist_ok=True)
    for name in (MODEL_CARD, checkpoint.WEIGHTS, checkpoint.AVERAGED):
        if (newest / name).exists():
            shutil.copyfile(newest / name, kept / name)


def write_spec(spec: RunSpec, work: Path) -> Path:
    """The spec's file, written."""
    folder = spec.folder(work)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "spec.json"
    path.write_text(json.dumps(asdict(spec), indent=1) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
