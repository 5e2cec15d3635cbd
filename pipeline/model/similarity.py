"""Similarity of pixels and centers, and the precision that it is computed in.

Shapes: B batch, K classes, D channels, N pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

NORM_EPS = 1e-3
"""Length below which a vector counts as short: its unit vector shrinks to zero with it."""


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 where it is that already."""
    return x if x.dtype == torch.float64 else x.float()


def unit(x: Tensor, dim: int) -> Tensor:
    """`x / sqrt(|x|^2 + eps^2)` along `dim`: a unit vector, safely zero at zero.

    Its gradient is at most 1/eps, where `F.normalize` has 1e12 at a zero vector.
    """
    return x * torch.rsqrt(x.square().sum(dim, keepdim=True) + NORM_EPS**2)


def pixel_rows(features_BDhw: Tensor) -> Tensor:
    """(B, N, D): each pixel's feature as a row, which costs nothing where features are channels-last.

    Elsewhere it is one copy, so that every use has its gradient in one layout: for one image torch's
    BatchNorm on CPUs misreads the sum of gradients of two.
    """
    return features_BDhw.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def cosine(pixel_BND: Tensor, center_BKD: Tensor) -> Tensor:
    """(B, N, K): cosine of each pixel's feature with each center.

    The lengths of the pixels divide the products, not the features: no second set of those is made.
    """
    # Not the sum of squares: those of all features would be there at once, if only for a moment.
    length_BN1 = torch.linalg.vector_norm(pixel_BND, dim=2, keepdim=True)
    product_BNK = torch.bmm(pixel_BND, unit(center_BKD, 2).transpose(1, 2))
    return product_BNK * torch.rsqrt(length_BN1.square() + NORM_EPS**2)
