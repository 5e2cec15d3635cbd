"""Cross entropies: over all labelled pixels, over each image's hardest, or with classes that count alike.

Shapes: B batch, K classes, H W label pixels, h w feature pixels, P pixels of all images.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.model.denominators import Denominators, kept_pixels, pixel_mean, valid_pixels
from pipeline.model.pixel_labels import IGNORE, Presence


def cross_entropy_sum(logits_BKhw: Tensor, label_BHW: Tensor, ohem_share: float) -> Tensor:
    """Summed cross entropy of the bilinearly enlarged logits over the pixels that are kept.

        CE = (1 / kept) sum_b sum_{p in hardest_b} -log softmax(Z_p)_{y_p}

    `hardest_b` are the ceil(ohem_share * valid_b) pixels of image b with the largest loss; with
    share 1 they are all that are not 255, and nothing is sorted.

    Source: online hard example mining (Shrivastava, Gupta, Girshick, arXiv 1604.03540), for pixels as
    in OCRNet's and mmsegmentation's recipes. Deviation: those keep the pixels whose probability is
    under a threshold, at least so many of the batch; how many depends on predictions and on which
    images share a device. Here each image keeps a share of its own labelled pixels.
    """
    logits_BKHW = F.interpolate(logits_BKhw, size=label_BHW.shape[1:], mode="bilinear", align_corners=False)
    # Summed here: over a plane of labels, on CUDA, torch's own sum is one of atomics, in any order.
    loss_BHW = pixel_cross_entropy(logits_BKHW, label_BHW).view(label_BHW.shape)
    if ohem_share == 1.0:
        return loss_BHW.sum()
    return hardest_sum(loss_BHW, label_BHW, ohem_share)


def pixel_cross_entropy(logits_BKHW: Tensor, label_BHW: Tensor) -> Tensor:
    """(B * H * W,) cross entropy of each pixel; zero where the label is 255.

    A pixel's logits as a row: that is how channels-last logits lie, and the softmax over an inner axis
    would copy them to and fro.
    """
    row_PK = logits_BKHW.permute(0, 2, 3, 1).flatten(0, 2)
    return F.cross_entropy(row_PK, label_BHW.flatten().long(), ignore_index=IGNORE, reduction="none")


def hardest_sum(loss_BHW: Tensor, label_BHW: Tensor, ohem_share: float) -> Tensor:
    """Sum, over images, of the ceil(ohem_share * valid) largest losses of labelled pixels.

    Among equal losses the earlier pixels are taken, so exactly that many are. The number differs from
    image to image and stays on the device: all losses are sorted and a mask over the ranks chooses,
    where `topk` would have to know it on the host.
    """
    # No loss is below zero: pixels without a label come after all others.
    loss_BN = loss_BHW.masked_fill(label_BHW == IGNORE, -1.0).flatten(1)
    falling_BN = loss_BN.sort(dim=1, descending=True, stable=True).values
    rank_N = torch.arange(loss_BN.shape[1], device=loss_BN.device)
    kept_B = kept_pixels(valid_pixels(label_BHW), ohem_share)
    return falling_BN.masked_fill(rank_N >= kept_B[:, None], 0.0).sum()


def balanced_cross_entropy(
    logits_BKhw: Tensor, feature_size: tuple[int, int], where: Presence, denominators: Denominators
) -> Tensor:
    """Mean over pairs (image, class present in it) of the mean cross entropy of the class's pixels.

    At the resolution of the features, to which finer logits are brought. For a similarity head with
    bias 0 it is L_intra's `cross-entropy`; here it serves any head, so that what classes that count
    alike do for the score can be told from what centers do. Source: class-balanced cross entropy of
    the field; the mean within images, so that nothing depends on which images share a batch.
    """
    if logits_BKhw.shape[2:] != feature_size:
        logits_BKhw = F.interpolate(logits_BKhw, size=feature_size, mode="bilinear", align_corners=False)
    loss_P = pixel_cross_entropy(logits_BKhw, where.own_BN)
    loss_BN = loss_P.view(where.own_BN.shape)
    return pixel_mean(loss_BN, where, denominators, "image-class")
