"""Score a model on packed shards: `python jobs/evaluate.py --model URI --shards DIR [--split val]`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout or the job's copy of it

from pipeline.data.dataset import ShardDataset
from pipeline.inference.predictor import Predictor
from pipeline.inference.scoring import score_split, score_table
from pipeline.launch.command_line import parse_flags
from pipeline.launch.job import Result, run_job
from pipeline.launch.paths import resolve_path
from pipeline.tracking.server import be_impatient, runs_folder, tracking_uri


@dataclass(frozen=True)
class EvaluateFlags:
    """Score a model on a split: mIoU, pixel accuracy and the IoU of every class."""

    model: str
    """Checkpoint folder, run folder, models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID."""
    shards: str
    """Folder or address of the packed data set."""
    split: str = "val"
    """Split to score."""
    runs: str | None = None
    """Folder of the runs whose registry `models:/` means, where MLFLOW_TRACKING_URI is not set."""


def evaluate(result: Result) -> None:
    """Fill in the RESULT; the table goes to standard output before it."""
    flags = parse_flags(EvaluateFlags, sys.argv[1:])
    dataset = ShardDataset.open(resolve_path("--shards", flags.shards), flags.split)
    dataset.preflight()
    be_impatient()
    runs = runs_folder(flags.runs and resolve_path("--runs", flags.runs))
    predictor = Predictor.load(flags.model, tracking_uri(runs))
    scores = score_split(predictor, dataset)
    names = dataset.classes.names
    print(f"{flags.model} on {len(dataset)} samples of {dataset.root} ({flags.split})")
    print(score_table(scores, names))
    result |= {
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "iou": dict(zip(names, scores.iou, strict=True)),
        "samples": len(dataset),
    }


if __name__ == "__main__":
    sys.exit(run_job("evaluate", evaluate, ("miou", "pixel_accuracy", "iou", "samples")))
