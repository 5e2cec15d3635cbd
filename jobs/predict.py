"""Masks and overlays for pictures: `python jobs/predict.py --model URI INPUT… --out DIR`."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout or the job's copy of it

import tyro

from pipeline.inference.picture_files import find_pictures, predict_file, prepare_out
from pipeline.inference.predictor import Predictor
from pipeline.launch.command_line import parse_flags
from pipeline.launch.job import Result, run_job
from pipeline.launch.paths import resolve_path
from pipeline.tracking.server import be_impatient, runs_folder, tracking_uri


@dataclass(frozen=True)
class PredictFlags:
    """Predict pictures: a mask of label ids and a colour overlay for each, at its own size."""

    inputs: tyro.conf.Positional[tuple[str, ...]]
    """Pictures, folders (with all below them) or quoted globs."""
    model: str
    """Checkpoint folder, run folder, models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID."""
    out: str
    """Folder for NAME_labelIds.png and NAME_overlay.png."""
    runs: str | None = None
    """Folder of the runs whose registry `models:/` means, where MLFLOW_TRACKING_URI is not set."""


def predict(result: Result) -> None:
    """Fill in the RESULT, picture by picture."""
    flags = parse_flags(PredictFlags, sys.argv[1:])
    out = Path(resolve_path("--out", flags.out))
    pictures = find_pictures([resolve_path("INPUT", text) for text in flags.inputs], out)
    prepare_out(out, pictures)
    be_impatient()
    runs = runs_folder(flags.runs and resolve_path("--runs", flags.runs))
    predictor = Predictor.load(flags.model, tracking_uri(runs))
    start_s = time.perf_counter()
    for number, path in enumerate(pictures, start=1):
        predict_file(path, out, predictor.predict, predictor.card.classes)
        rate = number / (time.perf_counter() - start_s)
        result |= {"images": number, "images_per_s": round(rate, 2)}
    print(f"{len(pictures)} masks and overlays in {out}")


if __name__ == "__main__":
    sys.exit(run_job("predict", predict, ("images", "images_per_s")))
