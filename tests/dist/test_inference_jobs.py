"""evaluate.py and predict.py as a person runs them: results, files, and one clear line for bad input."""

import json
import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pipeline.config import BackboneConfig, HeadConfig, ModelConfig
from pipeline.data.dataset import ShardDataset
from pipeline.data.labels import CITYSCAPES
from pipeline.inference.predictor import Predictor
from pipeline.model.segmenter import build_segmenter
from pipeline.train.checkpoint import WEIGHTS
from pipeline.train.metrics import confusion_matrix, scores
from pipeline.train.model_card import ModelCard
from tests.checkpoints import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
MODEL = ModelConfig(BackboneConfig(base_width=8), HeadConfig(dim=16))


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The RESULT line, which must be the last."""
        *_, last = self.out.splitlines()
        assert last.startswith("RESULT "), self.out + self.err
        result = json.loads(last.removeprefix("RESULT "))
        assert result["exit_code"] == self.code
        return result


def run(job: str, *words: object) -> Ended:
    """The job in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {
        "OMP_NUM_THREADS": "1"
    }
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def run_here(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Ended]]:
    """Runs a job in this process, which saves the seconds of importing torch."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    logger = logging.getLogger("pipeline")
    before = logger.level, logger.propagate, list(logger.handlers)

    def run_job_here(job: str, *words: object) -> Ended:
        script = str(ROOT / "jobs" / f"{job}.py")
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(script, run_name="__main__")
        captured = capfd.readouterr()
        return Ended(int(end.value.code or 0), captured.out, captured.err)

    yield run_job_here
    logger.level, logger.propagate, logger.handlers[:] = before


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "step_00000001-a"
    card = ModelCard(MODEL, CITYSCAPES, 32, 64, "ab" * 32, 1, 0.1)
    write_checkpoint(folder, {WEIGHTS: build_segmenter(MODEL, 19).state_dict()}, card, {})
    return folder


def test_evaluate_scores_every_sample_of_the_split_at_the_labels_size(model: Path, city_shards: Path) -> None:
    ended = run("evaluate", "--model", model, "--shards", city_shards)
    assert ended.code == 0, ended.err
    dataset, predictor = ShardDataset.open(str(city_shards), "val"), Predictor.from_folder(model)
    confusion_KK = np.zeros((19, 19), np.int64)
    for index in range(len(dataset)):
        sample = dataset.sample_at(index)
        confusion_KK += confusion_matrix(predictor.predict(sample.image_HW3), sample.label_HW, 19)
    expected, result = scores(confusion_KK), ended.result
    assert result["samples"] == len(dataset) == 5
    assert result["miou"] == pytest.approx(expected.miou, abs=1e-6)
    assert result["pixel_accuracy"] == pytest.approx(expected.pixel_accuracy, abs=1e-6)
    assert list(result["iou"]) == list(CITYSCAPES.names)
    assert result["iou"]["road"] == pytest.approx(expected.iou[0], abs=1e-6)
    assert "mIoU" in ended.out
    assert "neither labelled nor predicted" in ended.out


def test_predict_writes_a_mask_and_an_overlay_for_every_picture(
    model: Path, city_tree: Path, tmp_path: Path
) -> None:
    source, out = city_tree / "leftImg8bit" / "val", tmp_path / "masks"
    ended = run("predict", "--model", model, source, "--out", out)
    assert ended.code == 0, ended.err
    assert ended.result["images"] == 5
    assert ended.result["images_per_s"] > 0
    stems = sorted(path.stem for path in source.rglob("*.png"))
    expected = sorted(f"{s}_{kind}.png" for s in stems for kind in ("labelIds", "overlay"))
    assert sorted(path.name for path in out.iterdir()) == expected
    mask_HW = cv2.imread(str(out / f"{stems[0]}_labelIds.png"), cv2.IMREAD_UNCHANGED)
    assert mask_HW.shape == (48, 96)
    assert set(np.unique(mask_HW)) <= set(CITYSCAPES.label_ids)


@pytest.fixture
def known(model: Path, city_shards: Path, city_tree: Path, tmp_path: Path) -> dict[str, Path]:
    """Paths that may be typed."""
    picture = next((city_tree / "leftImg8bit").rglob("*.png"))
    (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:50])
    return {"model": model, "tmp": tmp_path, "picture": picture, "shards": city_shards}


@pytest.mark.parametrize(
    ("job", "words", "code", "expected"),
    [
        ("predict", "--model {model} {tmp}/absent.png --out {tmp}/o", 2, "no such file or folder"),
        ("predict", "--model {tmp}/absent {picture} --out {tmp}/o", 2, "no such folder"),
        ("predict", "--model {model} {tmp}/broken.png --out {tmp}/o", 2, "broken.png"),
        ("predict", "--model {model} {picture} --out {tmp}/broken.png/o", 3, "cannot write to --out"),
        ("predict", "--model {model} --out {tmp}/o", 2, "nothing to predict"),
        ("predict", "--modle {model} {picture} --out {tmp}/o", 2, "did you mean --model"),
        ("predict", "--model models:/x@y --runs {tmp} {picture} --out {tmp}/o", 2, "no MLflow database"),
        ("evaluate", "--model {model} --shards {tmp}/absent", 2, "absent"),
        ("evaluate", "--model {model} --shards {shards} --split vall", 2, "did you mean val"),
    ],
)
def test_bad_input_is_one_clear_line_and_its_exit_code(
    known: dict[str, Path], run_here: Callable[..., Ended], job: str, words: str, code: int, expected: str
) -> None:
    ended = run_here(job, *(word.format(**known) for word in words.split()))
    assert ended.code == code, ended.err
    assert ended.result["status"] != "ok"
    assert expected in ended.err, ended.err
    assert len(ended.err.strip().splitlines()) == 1, ended.err
