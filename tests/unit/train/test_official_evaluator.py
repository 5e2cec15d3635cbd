"""mIoU and every class's IoU equal what the official Cityscapes evaluator says of the same files."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.data.labels import CITYSCAPES
from pipeline.train.metrics import Scores, confusion_matrix, scores

OFFICIAL = (
    "import numpy as np; np.in1d = np.isin\n"  # removed in NumPy 2.4, still called by the evaluator
    "from cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling import main; main()"
)
CITY, HEIGHT, WIDTH = "testville", 40, 64
ABSENT = (14, 15, 16)
"""Train ids (truck, bus, train) that no label has; the last is not predicted either."""


def draw(rng: np.random.Generator, choices: list[int]) -> np.ndarray:
    """Blocks of the given ids, so that agreement is neither total nor chance."""
    blocks = rng.choice(choices, (HEIGHT // 8, WIDTH // 8)).astype(np.uint8)
    return np.kron(blocks, np.ones((8, 8), np.uint8))


def official_scores(root: Path) -> dict:
    export = root / "export"
    export.mkdir()
    environment = os.environ | {
        "CITYSCAPES_DATASET": str(root),
        "CITYSCAPES_RESULTS": str(root / "results"),
        "CITYSCAPES_EXPORT_DIR": str(export),
    }
    done = subprocess.run(
        [sys.executable, "-c", OFFICIAL], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((export / "resultPixelLevelSemanticLabeling.json").read_text())


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scores, dict]:
    """Our scores and the official ones of three scenes with ignored pixels and absent classes."""
    root, rng = tmp_path_factory.mktemp("official"), np.random.default_rng(3)
    truth, results = root / "gtFine" / "val" / CITY, root / "results"
    truth.mkdir(parents=True)
    results.mkdir()
    labelled = [i for i in range(19) if i not in ABSENT] + [255] * 3
    confusion_KK = np.zeros((19, 19), np.int64)
    for number in range(3):
        label_HW = draw(rng, labelled)
        prediction_HW = np.where(rng.random((HEIGHT, WIDTH)) < 0.7, label_HW, draw(rng, list(range(16))))
        prediction_HW = np.where(prediction_HW == 255, 3, prediction_HW).astype(np.uint8)
        confusion_KK += confusion_matrix(prediction_HW, label_HW, 19)
        stem = f"{CITY}_{number:06d}_000019"
        label_ids = CITYSCAPES.to_label_ids(label_HW)
        cv2.imwrite(str(truth / f"{stem}_gtFine_labelIds.png"), label_ids)
        cv2.imwrite(str(truth / f"{stem}_gtFine_instanceIds.png"), label_ids.astype(np.uint16))
        cv2.imwrite(str(results / f"{stem}_labelIds.png"), CITYSCAPES.to_label_ids(prediction_HW))
    return scores(confusion_KK), official_scores(root)


def test_miou_is_the_official_one(both: tuple[Scores, dict]) -> None:
    ours, official = both
    assert ours.miou == pytest.approx(official["averageScoreClasses"], abs=1e-6)
    assert 0.3 < ours.miou < 0.9, "the scenes must tell right from wrong"


def test_the_iou_of_every_class_is_the_official_one(both: tuple[Scores, dict]) -> None:
    ours, official = both
    for name, iou in zip(CITYSCAPES.names, ours.iou, strict=True):
        expected = official["classScores"][name]
        if iou is None:
            assert math.isnan(expected), name
        else:
            assert iou == pytest.approx(expected, abs=1e-6), name


def test_a_class_without_labels_or_predictions_has_no_score_and_a_false_alarm_scores_zero(
    both: tuple[Scores, dict],
) -> None:
    ours, _ = both
    assert ours.iou[16] is None
    assert ours.iou[14] == 0.0
    assert ours.iou[15] == 0.0
