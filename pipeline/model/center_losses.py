"""Distance between class centers (L_inter) and between pixels and their own center (L_intra), all forms.

The CCS abstract (arXiv 2301.04870) asks for losses that supervise center-to-center and pixel-to-center
similarity and does not say which. Each form here names its published relative and what it does
otherwise. All work at feature resolution on classes that are *present* in an image, which is a matter
of the labels; every mean is a sum over a part of the batch divided by a count of the global batch.

Shapes: B batch, K classes, D channels, h w feature pixels, N = h * w.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.config import HeadConfig
from pipeline.model.denominators import Denominators, divided, pixel_mean
from pipeline.model.output import SegmenterOutput
from pipeline.model.pixel_labels import Presence
from pipeline.model.similarity import cosine, pixel_rows, unit

RELATION_THRESHOLD = 0.5
"""CAR's: similarity that a center may give to all others together before `softmax_relation` counts it."""


def loss_centers(output: SegmenterOutput, where: Presence, config: HeadConfig) -> Tensor:
    """(B, K, D): the centers that both distances see, by `center_source`.

    `accm` C, the scene's centers that also classify. `global` G, the same for every image.
    `label-image` the mean feature of the image's pixels with that label, zero for a class that the
    image lacks (CAR's center, arXiv 2203.07160; there over the global batch, which would need a
    collective between forward and loss).
    """
    assert output.centers_BKD is not None
    assert output.global_KD is not None
    if config.center_source == "accm":
        return output.centers_BKD
    if config.center_source == "global":
        return output.global_KD.expand(output.centers_BKD.shape)
    pixel_BND = output.features_BDhw.flatten(2).transpose(1, 2)
    summed_BKD = torch.bmm(where.member_BKN.to(pixel_BND.dtype), pixel_BND)
    return summed_BKD / where.count_BK.clamp_min(1)[..., None]


def inter_class(
    center_BKD: Tensor, present_BK: Tensor, denominators: Denominators, config: HeadConfig
) -> Tensor:
    """L_inter of this part: its images' distances over the global batch's images with two classes.

    An image with fewer than two classes present adds exactly zero.
    """
    if config.inter_form == "hinge":
        distance_B = hinge(center_BKD, present_BK, config.delta, config.p)
    elif config.inter_form == "identity":
        distance_B = identity(center_BKD, present_BK)
    else:
        distance_B = softmax_relation(center_BKD, center_BKD.detach(), present_BK)
    return divided(distance_B.sum(), denominators.inter_images)


def hinge(center_BKD: Tensor, present_BK: Tensor, delta: float, p: int) -> Tensor:
    """(B,) mean over ordered pairs i != j of present classes of relu(cos(C_i, C_j) - delta)^p.

    0 for centers at least as far apart as delta says; with delta 0 and p 2, 1 for identical ones.
    Source: the abstract's "inter-class distance"; the form is ours.
    """
    return _pair_mean((_center_cosine(center_BKD) - delta).relu().pow(p), present_BK)


def identity(center_BKD: Tensor, present_BK: Tensor) -> Tensor:
    """(B,) mean over ordered pairs i != j of present classes of cos(C_i, C_j)^2.

    The squared difference of the cosines from the identity matrix: two-sided, so opposite centers cost
    as much as equal ones; 0 for orthogonal centers alone, 1 for identical ones.

    Source: the squared difference of a cosine from "same class or not" in the authors' later Conditional
    Boundary Loss (IEEE TIP 2023, doi 10.1109/TIP.2023.3290519). Deviations: that compares a boundary
    pixel with its 5x5 neighbours, this the centers; the diagonal, zero whatever the centers, is left
    out of the mean, so that the number of classes does not scale it.
    """
    return _pair_mean(_center_cosine(center_BKD).square(), present_BK)


def softmax_relation(query_BKD: Tensor, key_BKD: Tensor, present_BK: Tensor) -> Tensor:
    """(B,) CAR's center-to-center loss; `key_BKD` are the same centers without their gradient.

        R_ij = softmax over present j of C_i . C_j / sqrt(D)
        e_i  = sum over present j != i of relu(R_ij - 0.5 / (K - 1))
        loss = (mean over present i of e_i)^2

    0 where no center is too near to another; (n - 1)^2 (1/n - 0.5/(K - 1))^2 for n identical ones.

    Source: "inter-c2c" of CAR, arXiv 2203.07160, threshold and stopped gradient of the key included
    (equations as in github.com/edwardyehuang/CAR). Deviations: the centers of each image, where CAR
    takes the labels' means over the global batch; absent classes leave the softmax, where CAR keeps
    them as zero vectors; a plain square, where CAR clips e_i to [1e-7, 1 - 1e-7] before.

    Products, not cosines: longer centers alone lower it.
    """
    num_classes, dim = query_BKD.shape[1:]
    product_BKK = torch.bmm(query_BKD, key_BKD.transpose(1, 2)) / math.sqrt(dim)
    # The least finite number, not -inf: a row of an image without labels would become NaN.
    least = torch.finfo(product_BKK.dtype).min
    relation_BKK = product_BKK.masked_fill(~present_BK[:, None, :], least).softmax(2)
    excess_BKK = (relation_BKK - RELATION_THRESHOLD / (num_classes - 1)).relu()
    excess_B = excess_BKK.masked_fill(~_pairs(present_BK), 0.0).sum((1, 2))
    return (excess_B / present_BK.sum(1).clamp_min(1)).square()


def intra_class(
    output: SegmenterOutput,
    center_BKD: Tensor,
    where: Presence,
    denominators: Denominators,
    config: HeadConfig,
) -> Tensor:
    """L_intra of this part: the mean, of the kind `intra_mean`, of the distance of x_p from C_k.

    With `detach_center` the pixels move and the centers stay.
    """
    if config.intra_form == "l1":
        center_BKD = center_BKD.detach() if config.detach_center else center_BKD
        distance_BN = l1_distance(output.features_BDhw.flatten(2), center_BKD, where.own_BN)
    else:
        cosine_BNK = _pixel_cosine(output, center_BKD, config)
        if config.intra_form == "cosine":
            distance_BN = cosine_distance(cosine_BNK, where.own_BN, config.q)
        else:
            distance_BN = cross_entropy_distance(cosine_BNK, where.own_BN, config.tau)
    return pixel_mean(distance_BN, where, denominators, config.intra_mean)


def _pixel_cosine(output: SegmenterOutput, center_BKD: Tensor, config: HeadConfig) -> Tensor:
    """(B, N, K): cosines of pixels and loss centers; the prediction's own for C that is not detached."""
    if output.cosine_BNK is not None and config.center_source == "accm" and not config.detach_center:
        return output.cosine_BNK
    center_BKD = center_BKD.detach() if config.detach_center else center_BKD
    return cosine(pixel_rows(output.features_BDhw), center_BKD)


def cosine_distance(cosine_BNK: Tensor, own_BN: Tensor, q: int) -> Tensor:
    """(B, N): (1 - cos(x_p, C_k))^q of each pixel and the center of its class `own_BN`; 0..2^q.

    0 exactly where the pixel points towards its center, however long either is.
    Source: the abstract's "intra-class distance"; the form is ours.
    """
    return (1.0 - cosine_BNK.gather(2, own_BN[..., None]).squeeze(2)).pow(q)


def l1_distance(pixel_BDN: Tensor, center_BKD: Tensor, own_BN: Tensor) -> Tensor:
    """(B, N): mean over the D channels of |x_p - C_k|; 0 only where the pixel is its center.

    Source: "intra-c2p" of CAR, arXiv 2203.07160. Deviation: CAR squares the mean over all pixels, which
    does not add up over parts of a batch; the square's gradient is this one's times twice the value.

    Lengths count, not directions alone: with `accm` or `global` centers, whose lengths the prediction
    by cosine leaves free, `detach_center` off lets them adapt; CAR's own are `label-image`.
    """
    index_BDN = own_BN[:, None].expand(-1, pixel_BDN.shape[1], -1)
    center_BDN = center_BKD.transpose(1, 2).gather(2, index_BDN)
    return (pixel_BDN - center_BDN).abs().mean(1)


def cross_entropy_distance(cosine_BNK: Tensor, own_BN: Tensor, tau: float) -> Tensor:
    """(B, N): -log softmax over all K classes of tau cos(x_p, C_k), at the pixel's own class.

    Source: scaled cosine softmax, NormFace, arXiv 1704.06369; the nearest in CAR is its "inter-c2p",
    with products for cosines. It pushes pixels from other centers as well as pulling them to their own,
    and is never zero. tau is the setting's, also where the layer learns its own; classes that the image
    lacks compete too, those without a center (`label-image`) at cosine 0.
    """
    loss_P = F.cross_entropy((tau * cosine_BNK).flatten(0, 1), own_BN.flatten(), reduction="none")
    return loss_P.view(own_BN.shape)


def _center_cosine(center_BKD: Tensor) -> Tensor:
    """(B, K, K): cosines between centers."""
    unit_BKD = unit(center_BKD, 2)
    return torch.bmm(unit_BKD, unit_BKD.transpose(1, 2))


def _pairs(present_BK: Tensor) -> Tensor:
    """(B, K, K): True for ordered pairs of two different present classes."""
    same_KK = torch.eye(present_BK.shape[1], dtype=torch.bool, device=present_BK.device)
    return present_BK[:, :, None] & present_BK[:, None, :] & ~same_KK


def _pair_mean(value_BKK: Tensor, present_BK: Tensor) -> Tensor:
    """(B,): mean over ordered pairs of two different present classes; zero where there is none."""
    pair_BKK = _pairs(present_BK)
    summed_B = value_BKK.masked_fill(~pair_BKK, 0.0).sum((1, 2))
    return summed_B / pair_BKK.sum((1, 2)).clamp_min(1)
