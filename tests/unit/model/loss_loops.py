"""The losses as loops over pixels and pairs, written from their equations alone, and inputs for them.

Float64 throughout. `terms` is the oracle of `segmentation_losses`: no function of the package is used.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from pipeline.config import HeadConfig
from pipeline.model.denominators import Denominators, count_labels
from pipeline.model.output import SegmenterOutput

CLASSES, DIM, HEIGHT, WIDTH = 4, 8, 3, 5
LABEL_HEIGHT, LABEL_WIDTH = 11, 18
IGNORE = 255

INTER_FORMS = ("hinge", "identity", "softmax")
INTRA_FORMS = ("cosine", "l1", "cross-entropy")
INTRA_MEANS = ("image-class", "batch-class", "pixel")
CENTER_SOURCES = ("accm", "label-image", "global")


def settings(**changes: object) -> HeadConfig:
    """Settings in which every term has a gradient for everything it sees."""
    weights = {"lambda_inter": 0.3, "lambda_intra": 0.7, "lambda_balanced": 0.2}
    return HeadConfig(**{"dim": DIM, "delta": -0.1, "detach_center": False, "tau": 5.0} | weights | changes)


def make_output(batch: int, seed: int = 0) -> SegmenterOutput:
    """Random predictions with gradients; long centers, so that no form is near its flat part."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    return SegmenterOutput(
        leaf(batch, CLASSES, HEIGHT, WIDTH),
        leaf(batch, CLASSES, HEIGHT, WIDTH),
        leaf(batch, DIM, HEIGHT, WIDTH),
        leaf(batch, CLASSES, DIM),
        leaf(CLASSES, DIM),
        None,
    )


def leaves(output: SegmenterOutput) -> tuple[torch.Tensor, ...]:
    """The tensors of `make_output`."""
    return tuple(output[:5])


def part(output: SegmenterOutput, which: slice) -> SegmenterOutput:
    """Some of the images."""
    *batched, global_KD = leaves(output)
    return SegmenterOutput(*(t[which] for t in batched), global_KD, None)


def make_label(batch: int, seed: int = 0) -> torch.Tensor:
    """Blobs of classes with a fifth of the pixels ignored."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, CLASSES, (batch, 4, 6))
    label = coarse.repeat(3, axis=1).repeat(3, axis=2)[:, :LABEL_HEIGHT, :LABEL_WIDTH]
    label = np.where(generator.random(label.shape) < 0.2, IGNORE, label)
    return torch.from_numpy(label.astype(np.uint8))


def counts(label: torch.Tensor, config: HeadConfig) -> Denominators:
    """The denominators of these labels as the whole batch."""
    return count_labels(label, (HEIGHT, WIDTH), CLASSES, n_min=config.n_min, ohem_share=config.ohem_share)


def nearest(label: np.ndarray) -> np.ndarray:
    """The label whose square holds the middle of the feature pixel, found in real numbers."""
    rows = [math.floor((i + 0.5) * LABEL_HEIGHT / HEIGHT) for i in range(HEIGHT)]
    columns = [math.floor((j + 0.5) * LABEL_WIDTH / WIDTH) for j in range(WIDTH)]
    return label[:, rows][:, :, columns]


def bilinear(x_BKhw: np.ndarray) -> np.ndarray:
    """Bilinear enlargement with half-pixel centers, as a matrix for each axis."""

    def matrix(size: int, target: int) -> np.ndarray:
        weights = np.zeros((target, size))
        for t in range(target):
            place = max((t + 0.5) * size / target - 0.5, 0.0)
            low = min(int(place), size - 1)
            high = min(low + 1, size - 1)
            weights[t, low] += 1 - (place - low)
            weights[t, high] += place - low
        return weights

    return matrix(HEIGHT, LABEL_HEIGHT) @ x_BKhw @ matrix(WIDTH, LABEL_WIDTH).T


def negative_log_softmax(z: np.ndarray, k: int) -> float:
    """Cross entropy of one pixel."""
    return math.log(sum(math.exp(value) for value in z)) - float(z[k])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """With the 1e-3 under which a vector counts as short."""
    return float(a @ b / math.sqrt(a @ a + 1e-6) / math.sqrt(b @ b + 1e-6))


def cross_entropy(logits_BKHW: np.ndarray, label: np.ndarray, share: float) -> float:
    """Mean over the pixels that are kept: of each image the hardest ceil(share * labelled)."""
    kept = []
    for b in range(len(label)):
        losses = [
            negative_log_softmax(logits_BKHW[b, :, i, j], label[b, i, j])
            for i, j in zip(*np.nonzero(label[b] != IGNORE), strict=True)
        ]
        kept += sorted(losses, reverse=True)[: math.ceil(share * len(losses))]
    return float(np.mean(kept)) if kept else 0.0


def centers_of(output: SegmenterOutput, label: np.ndarray, source: str) -> np.ndarray:
    """(B, K, D) that the distances see."""
    feature, center, common = (t.detach().numpy() for t in output[2:5])
    if source == "accm":
        return center
    if source == "global":
        return np.stack([common] * len(center))
    means = np.zeros_like(center)
    for b, small in enumerate(nearest(label)):
        for k in range(CLASSES):
            if (small == k).any():
                means[b, k] = feature[b][:, small == k].mean(1)
    return means


def present_classes(small: np.ndarray, n_min: int) -> list[int]:
    """Classes of one image with at least n_min pixels."""
    return [k for k in range(CLASSES) if (small == k).sum() >= n_min]


def relation_excess(center: np.ndarray, i: int, present: list[int]) -> float:
    """CAR: how much of row i's softmax over present centers goes to others, beyond 0.5 / (K - 1) each."""
    scores = {j: math.exp(center[i] @ center[j] / math.sqrt(DIM)) for j in present}
    total = sum(scores.values())
    return sum(max(scores[j] / total - 0.5 / (CLASSES - 1), 0.0) for j in present if j != i)


def inter(center: np.ndarray, label: np.ndarray, config: HeadConfig) -> float:
    """L_inter: mean over the images with two present classes or more."""
    per_image = []
    for b, small in enumerate(nearest(label)):
        present = present_classes(small, config.n_min)
        if len(present) < 2:
            continue
        if config.inter_form == "softmax":
            rows = [relation_excess(center[b], i, present) for i in present]
            per_image.append((sum(rows) / len(rows)) ** 2)
            continue
        cosines = [cosine(center[b, i], center[b, j]) for i in present for j in present if i != j]
        if config.inter_form == "hinge":
            values = [max(c - config.delta, 0.0) ** config.p for c in cosines]
        else:
            values = [c**2 for c in cosines]
        per_image.append(sum(values) / len(values))
    return sum(per_image) / len(per_image) if per_image else 0.0


def distance(x: np.ndarray, centers: np.ndarray, k: int, config: HeadConfig) -> float:
    """Of one pixel from the center of its class."""
    if config.intra_form == "cosine":
        return (1 - cosine(x, centers[k])) ** config.q
    if config.intra_form == "l1":
        return sum(abs(x[d] - centers[k, d]) for d in range(DIM)) / DIM
    return negative_log_softmax(np.array([config.tau * cosine(x, c) for c in centers]), k)


def intra(feature: np.ndarray, center: np.ndarray, label: np.ndarray, config: HeadConfig) -> float:
    """L_intra: the mean that `intra_mean` names."""
    of_pair = {}
    for b, small in enumerate(nearest(label)):
        for k in present_classes(small, config.n_min):
            pixels = feature[b][:, small == k].T
            of_pair[b, k] = [distance(x, center[b], k, config) for x in pixels]
    if not of_pair:
        return 0.0
    if config.intra_mean == "image-class":
        return float(np.mean([np.mean(values) for values in of_pair.values()]))
    of_class: dict[int, list[float]] = {}
    for (_, k), values in of_pair.items():
        of_class.setdefault(k, []).extend(values)
    if config.intra_mean == "batch-class":
        return float(np.mean([np.mean(values) for values in of_class.values()]))
    return float(np.mean([value for values in of_class.values() for value in values]))


def balanced(logits: np.ndarray, label: np.ndarray, config: HeadConfig) -> float:
    """Mean over images and their classes of the mean cross entropy of the class's pixels."""
    of_pair = []
    for b, small in enumerate(nearest(label)):
        for k in present_classes(small, config.n_min):
            of_pair.append(np.mean([negative_log_softmax(z, k) for z in logits[b][:, small == k].T]))
    return float(np.mean(of_pair)) if of_pair else 0.0


def terms(output: SegmenterOutput, label: torch.Tensor, config: HeadConfig) -> list[float]:
    """total, ce, coarse, balanced, inter, intra."""
    logits, coarse, feature = (t.detach().numpy() for t in output[:3])
    y = label.numpy()
    center = centers_of(output, y, config.center_source)
    found = [
        cross_entropy(bilinear(logits), y, config.ohem_share),
        cross_entropy(bilinear(coarse), y, config.ohem_share),
        balanced(logits, y, config),
        inter(center, y, config),
        intra(feature, center, y, config),
    ]
    weights = [
        1.0, config.lambda_coarse, config.lambda_balanced, config.lambda_inter, config.lambda_intra,
    ]  # fmt: skip
    return [sum(w * t for w, t in zip(weights, found, strict=True)), *found]
