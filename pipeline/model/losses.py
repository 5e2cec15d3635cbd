"""The loss of a batch as sums over global counts, so that parts of a batch add up to the whole.

Every mean has a denominator that depends on labels alone. It is counted here (`count_labels`),
summed over micro-batches and ranks by the caller, and given back: then the terms and gradients
of the parts, summed, are those of the whole batch, whatever labels each part happens to hold.

    total = ce + lambda_coarse coarse + lambda_inter inter + lambda_intra intra

Everything runs in float32 whatever autocast says, and in float64 when the output is that.

Shapes: B batch, K classes, D channels, H W label pixels, h w feature pixels, N = h * w.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import HeadConfig
from pipeline.model.heads import SegmenterOutput
from pipeline.model.pixel_labels import IGNORE, Presence, presence
from pipeline.model.similarity import center_cosine, unit


class Denominators(NamedTuple):
    """What the terms are divided by: 0-dim float64 tensors, counts of the labels alone."""

    valid_pixels: Tensor
    """Label pixels that are not 255, at full resolution."""
    inter_images: Tensor
    """Images with at least two classes present at feature resolution."""
    intra_classes: Tensor
    """Pairs of an image and a class present in it."""


class LossTerms(NamedTuple):
    """0-dim tensors, each already divided by its global denominator; add over parts of the batch."""

    total: Tensor
    ce: Tensor
    coarse: Tensor
    inter: Tensor
    intra: Tensor


def count_labels(
    label_BHW: Tensor, feature_height: int, feature_width: int, num_classes: int, n_min: int
) -> Denominators:
    """Counts of one part of a batch; the sum over micro-batches and ranks is what the losses want."""
    present_BK = presence(label_BHW, feature_height, feature_width, num_classes, n_min).present_BK
    return Denominators(
        (label_BHW != IGNORE).sum().double(),
        (present_BK.sum(1) >= 2).sum().double(),
        present_BK.sum().double(),
    )


def segmentation_losses(
    output: SegmenterOutput, label_BHW: Tensor, denominators: Denominators, config: HeadConfig
) -> LossTerms:
    """The terms of this part of the batch. A term without labels is exactly zero, its gradients too.

    A plain head has no centers, so `inter` and `intra` are zero.
    """
    with torch.autocast(output.logits_BKhw.device.type, enabled=False):
        ce = cross_entropy_sum(output.logits_BKhw, label_BHW)
        coarse = cross_entropy_sum(output.coarse_BKhw, label_BHW)
        inter = intra = ce.new_zeros(())
        if output.centers_BKD is not None:
            num_classes, height, width = output.logits_BKhw.shape[1:]
            where = presence(label_BHW, height, width, num_classes, config.n_min)
            inter = inter_class_sum(output.centers_BKD, where, config.delta, config.p)
            center_BKD = output.centers_BKD.detach() if config.detach_center else output.centers_BKD
            intra = intra_class_sum(output.features_BDhw, center_BKD, where, config.q)
        ce = _divide(ce, denominators.valid_pixels)
        coarse = _divide(coarse, denominators.valid_pixels)
        inter = _divide(inter, denominators.inter_images)
        intra = _divide(intra, denominators.intra_classes)
        total = ce + config.lambda_coarse * coarse
        if output.centers_BKD is not None:
            total = total + config.lambda_inter * inter + config.lambda_intra * intra
    return LossTerms(total, ce, coarse, inter, intra)


def cross_entropy_sum(logits_BKhw: Tensor, label_BHW: Tensor) -> Tensor:
    """Summed cross entropy of the bilinearly enlarged logits over the pixels that are not 255."""
    logits_BKHW = F.interpolate(logits_BKhw, size=label_BHW.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits_BKHW, label_BHW.long(), ignore_index=IGNORE, reduction="sum")


def inter_class_sum(center_BKD: Tensor, where: Presence, delta: float, p: int) -> Tensor:
    """Sum over images of the mean over ordered pairs i != j of present classes of relu(cos - delta)^p.

    Zero for centers at least as far apart as delta says; images with fewer than two classes add zero.
    """
    unit_BKD = unit(center_BKD, 2)
    cosine_BKK = torch.bmm(unit_BKD, unit_BKD.transpose(1, 2))
    num_classes = center_BKD.shape[1]
    same_KK = torch.eye(num_classes, dtype=torch.bool, device=center_BKD.device)
    pair_BKK = where.present_BK[:, :, None] & where.present_BK[:, None, :] & ~same_KK
    excess_BKK = (cosine_BKK - delta).relu().pow(p).masked_fill(~pair_BKK, 0.0)
    num_pairs_B = pair_BKK.sum((1, 2)).clamp_min(1)
    return (excess_BKK.sum((1, 2)) / num_pairs_B).sum()


def intra_class_sum(feature_BDhw: Tensor, center_BKD: Tensor, where: Presence, q: int) -> Tensor:
    """Sum over (image, present class) of the mean over the class's pixels of (1 - cos(x, C))^q.

    Zero exactly where every labelled pixel points towards its center.
    """
    cosine_BKN = center_cosine(center_BKD, feature_BDhw.flatten(2))
    distance_BKN = (1.0 - cosine_BKN).pow(q).masked_fill(~where.member_BKN, 0.0)
    mean_BK = distance_BKN.sum(2) / where.count_BK.clamp_min(1)
    return mean_BK.masked_fill(~where.present_BK, 0.0).sum()


def _divide(summed: Tensor, count: Tensor) -> Tensor:
    """`summed / count`, and zero (still connected to the graph) where there is nothing to count."""
    return summed / count.clamp_min(1).to(summed.dtype)
