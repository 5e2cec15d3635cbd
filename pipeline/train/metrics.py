"""Names of what is recorded, and the scores of a confusion matrix.

mIoU is the official Cityscapes evaluator's: intersection over union a class from one confusion
matrix over all labelled pixels, then the mean over the classes that have a score.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.labels import IGNORE

LOSS = "train/loss"
LOSS_CE = "train/loss_ce"
LOSS_COARSE = "train/loss_coarse"
LOSS_INTER = "train/loss_inter"
LOSS_INTRA = "train/loss_intra"
LOSS_BALANCED = "train/loss_balanced"
LOSS_TERMS = (LOSS, LOSS_CE, LOSS_COARSE, LOSS_BALANCED, LOSS_INTER, LOSS_INTRA)
"""In the order of `model.losses.LossTerms`."""
GRADIENT_NORM = "train/gradient_norm"
SKIPPED = "train/skipped_steps"
"""Updates of the run that did not happen, as their loss or gradient was not finite."""
BROKEN_RANKS = "train/broken_ranks"
"""Ranks whose weights are not finite: ends the run, so it is no curve."""
LEARNING_RATE = "train/lr"
SAMPLES_PER_S = "train/samples_per_s"
DATA_WAIT_SHARE = "data/wait_share"
QUARANTINED = "data/quarantined"
STORE_S_PER_SAMPLE = "data/store_s_per_sample"
DECODE_S_PER_SAMPLE = "data/decode_s_per_sample"
WORKER_RESTARTS = "data/worker_restarts"
"""Loader workers of rank 0 that were replaced since the point before."""
VAL_MIOU = "val/miou"
VAL_PIXEL_ACCURACY = "val/pixel_accuracy"
VAL_IOU = "val/iou/{}"
SCENE_GATE = "accm/gate/{}"
"""How far a class's center goes from the global towards the scene's one: 0 idle, 1 replaced by it."""
SCENE_COSINE = "accm/scene_cosine"
SCENE_DISTANCE = "accm/scene_distance"
CHECKPOINT_STALL_S = "checkpoint/stall_s"

PICTURE = "val_pred/scene{}"
IOU_TABLE = "val/iou_per_class"
CONFUSION_TABLE = "val/confusion"

COUNTABLE_PX = 2**24
"""OpenCV counts in float32, which knows every whole number up to here."""


class Scores(NamedTuple):
    """What a confusion matrix says."""

    miou: float
    """Mean IoU over the classes that have a score, in [0, 1]; 0 when none has."""
    pixel_accuracy: float
    """Share of the labelled pixels that are right; 0 when none is labelled."""
    iou: tuple[float | None, ...]
    """IoU of each class; None where the class is neither labelled nor predicted."""


def confusion_matrix(
    prediction_HW: NDArray[np.uint8], label_HW: NDArray[np.uint8], num_classes: int
) -> NDArray[np.int64]:
    """Pixel counts (K, K), rows by label and columns by prediction; labels of 255 are left out.

    Raises ValueError where shapes differ or an id is neither a class nor 255.
    """
    if prediction_HW.shape != label_HW.shape:
        raise ValueError(f"prediction {prediction_HW.shape} and label {label_HW.shape} differ in shape")
    # All pairs of bytes, so that one pass finds foreign ids too; OpenCV makes it in a few milliseconds.
    pairs = np.zeros((256, 256), np.int64)
    height, width = label_HW.shape
    rows = max(1, COUNTABLE_PX // max(width, 1))
    for top in range(0, height, rows):
        part = [label_HW[top : top + rows], prediction_HW[top : top + rows]]
        pairs += cv2.calcHist(part, [0, 1], None, [256, 256], [0, 256, 0, 256]).astype(np.int64)
    pairs[IGNORE] = 0
    if pairs[num_classes:].any() or pairs[:, num_classes:].any():
        foreign = max(int(ids.max()) for ids in pairs.nonzero())
        raise ValueError(f"an id is {foreign}, there are {num_classes} classes")
    return pairs[:num_classes, :num_classes]


def scores(confusion_KK: NDArray[np.int64]) -> Scores:
    """Scores of a confusion matrix with rows by label and columns by prediction.

    Pixels labelled 255 count nowhere, as in the official evaluator: a prediction there is no
    false positive.
    """
    hits = np.diag(confusion_KK).astype(np.float64)
    union = confusion_KK.sum(0) + confusion_KK.sum(1) - hits
    iou = tuple(float(h / u) if u else None for h, u in zip(hits, union, strict=True))
    scored = [value for value in iou if value is not None]
    total = int(confusion_KK.sum())
    return Scores(
        miou=float(np.mean(scored)) if scored else 0.0,
        pixel_accuracy=float(hits.sum() / total) if total else 0.0,
        iou=iou,
    )
