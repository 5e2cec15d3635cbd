"""Names of what is recorded, and the scores of a confusion matrix.

mIoU is the official Cityscapes evaluator's: intersection over union a class from one confusion
matrix over all labelled pixels, then the mean over the classes that have a score.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LOSS = "train/loss"
LOSS_CE = "train/loss_ce"
LOSS_COARSE = "train/loss_coarse"
LOSS_INTER = "train/loss_inter"
LOSS_INTRA = "train/loss_intra"
LOSS_TERMS = (LOSS, LOSS_CE, LOSS_COARSE, LOSS_INTER, LOSS_INTRA)
"""In the order of `model.losses.LossTerms`."""
GRADIENT_NORM = "train/gradient_norm"
NON_FINITE = "train/non_finite_steps"
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
CHECKPOINT_STALL_S = "checkpoint/stall_s"

PICTURE = "val_pred/scene{}"
IOU_TABLE = "val/iou_per_class"
CONFUSION_TABLE = "val/confusion"


class Scores(NamedTuple):
    """What a confusion matrix says."""

    miou: float
    """Mean IoU over the classes that have a score, in [0, 1]; 0 when none has."""
    pixel_accuracy: float
    """Share of the labelled pixels that are right; 0 when none is labelled."""
    iou: tuple[float | None, ...]
    """IoU of each class; None where the class is neither labelled nor predicted."""


def confusion_matrix(
    prediction_HW: NDArray[np.integer], label_HW: NDArray[np.integer], num_classes: int
) -> NDArray[np.int64]:
    """Pixel counts (K, K), rows by label and columns by prediction; labels of 255 are left out.

    Raises ValueError where shapes differ or an id is neither a class nor 255.
    """
    if prediction_HW.shape != label_HW.shape:
        raise ValueError(f"prediction {prediction_HW.shape} and label {label_HW.shape} differ in shape")
    valid = label_HW != 255
    label = label_HW[valid].astype(np.int64)
    prediction = prediction_HW[valid].astype(np.int64)
    if label.size and max(label.max(), prediction.max()) >= num_classes:
        raise ValueError(f"an id is {max(label.max(), prediction.max())}, there are {num_classes} classes")
    pairs = np.bincount(label * num_classes + prediction, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


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
