"""The loss of a batch as sums over global counts, so that parts of a batch add up to the whole.

    total = ce + lambda_coarse coarse + lambda_balanced balanced + lambda_inter inter + lambda_intra intra

Each term is a sum over a part of the batch divided by a count of the global batch's labels
(`denominators.py`), so the terms and gradients of the parts, added, are those of the whole batch.
Everything runs in float32 whatever autocast says, and in float64 when the output is that; nothing is
read back from the device.

Shapes: B batch, K classes, D channels, H W label pixels, h w feature pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.config import HeadConfig
from pipeline.model.center_losses import inter_class, intra_class, loss_centers
from pipeline.model.cross_entropy import balanced_cross_entropy, cross_entropy_sum
from pipeline.model.denominators import Denominators, divided
from pipeline.model.output import SegmenterOutput
from pipeline.model.pixel_labels import Presence, presence


class LossTerms(NamedTuple):
    """0-dim tensors, each already divided by its global denominator; add over parts of the batch."""

    total: Tensor
    ce: Tensor
    coarse: Tensor
    balanced: Tensor
    inter: Tensor
    intra: Tensor


def segmentation_losses(
    output: SegmenterOutput, label_BHW: Tensor, denominators: Denominators, config: HeadConfig
) -> LossTerms:
    """The terms of this part of the batch. A term without labels is exactly zero, its gradients too.

    `denominators` are the counts of the whole global batch. A head without centers has zeros for
    `inter` and `intra`; where their weight is 0 they are computed, to be logged, but not in `total`.
    """
    with torch.autocast(output.logits_BKhw.device.type, enabled=False):
        ce, coarse = (
            divided(cross_entropy_sum(logits, label_BHW, config.ohem_share), denominators.kept_pixels)
            for logits in (output.logits_BKhw, output.coarse_BKhw)
        )
        num_classes, height, width = output.coarse_BKhw.shape[1:]
        where = presence(label_BHW, (height, width), num_classes, config.n_min)
        balanced = balanced_cross_entropy(output.logits_BKhw, (height, width), where, denominators)
        inter, intra = _center_terms(output, where, denominators, config)
        total = ce + config.lambda_coarse * coarse
        for weight, term in (
            (config.lambda_balanced, balanced),
            (config.lambda_inter, inter),
            (config.lambda_intra, intra),
        ):
            if weight > 0:  # the coarse one always: its classifier may have no other gradient, DDP wants one
                total = total + weight * term
    return LossTerms(total, ce, coarse, balanced, inter, intra)


def _center_terms(
    output: SegmenterOutput, where: Presence, denominators: Denominators, config: HeadConfig
) -> tuple[Tensor, Tensor]:
    """L_inter and L_intra of this part; zeros for a head without centers."""
    if output.centers_BKD is None:
        zero = output.logits_BKhw.new_zeros(())
        return zero, zero
    center_BKD = loss_centers(output, where, config)
    return (
        inter_class(center_BKD, where.present_BK, denominators, config),
        intra_class(output, center_BKD, where, denominators, config),
    )
