"""ACCM, the adaptive class center module: class centers of one scene.

After Wu, Guo, Li, Yu, Gao, Sang, arXiv 2301.04870, of which only the abstract was available: what is
inside is a reconstruction from published relatives, each named where its equation stands.

    W, m   how much each pixel, and the whole scene, counts for a class (`weigh`)
    S      the scene's own centers (`AdaptiveClassCenters.gather`)
    C      centers of the scene from S, m and the global centers G (`AdaptiveClassCenters.fuse`)

All of it is for float32 or float64 tensors; the caller turns autocast off. Nothing here waits for the
device: no value is read back, and no Python branch depends on one.

Shapes: B batch, K classes, D channels, N feature pixels.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.config import HeadConfig
from pipeline.model.output import SceneState

LEAST_MASS = 1e-6
"""Mass, in pixels, under which a scene center is not scaled up any further."""

Assignment = Literal["softmax", "hard", "pixel-softmax"]
Mass = Literal["sum", "above-chance", "squared"]


def assign(coarse_BKN: Tensor, assignment: Assignment, temperature: float) -> Tensor:
    """P (B, K, N), shares of each pixel that sum to 1 over the classes.

    `softmax`, and the masses of `pixel-softmax`: P = softmax over k of A / T_a (ACFNet's coarse
    prediction, arXiv 1909.09408). `hard`: P = 1 at the largest A and 0 elsewhere, the first of equals;
    the limit T_a -> 0 of the former, and no gradient reaches A through it.
    """
    if assignment == "hard":
        class_K1 = torch.arange(coarse_BKN.shape[1], device=coarse_BKN.device)[:, None]
        return (coarse_BKN.argmax(1, keepdim=True) == class_K1).to(coarse_BKN.dtype)
    return torch.softmax(coarse_BKN / temperature, dim=1)


def weigh(share_BKN: Tensor, mass: Mass) -> Tensor:
    """W (B, K, N) in [0, 1]: what a share P adds to the mass and to the mean of its class.

    `sum`: W = P (ACFNet). `above-chance`: W = relu(P - 1/K) K / (K - 1), zero for a guess and one for
    a certainty. `squared`: W = P^2, between them. The last two are ours: under W = P a prediction that
    knows nothing still gives each class N / K pixels, all with the image's mean feature as center.
    """
    if mass == "sum":
        return share_BKN
    if mass == "squared":
        return share_BKN.square()
    num_classes = share_BKN.shape[1]
    return (share_BKN - 1.0 / num_classes).relu() * (num_classes / (num_classes - 1))


def share_of_pixels(coarse_BKN: Tensor, temperature: float, ignored_BN: Tensor | None) -> Tensor:
    """(B, K, N): softmax over the pixels of A / T_a, as OCRNet gathers (arXiv 1909.11065).

    Ignored pixels get zero, and so does everything where all are ignored.
    """
    scaled_BKN = coarse_BKN / temperature
    if ignored_BN is None:
        return torch.softmax(scaled_BKN, dim=2)
    ignored_B1N = ignored_BN[:, None, :]
    # The lowest finite number, not -inf: a row of -inf alone has a softmax of NaN, and though that would be
    # masked below, anomaly detection stops at it.
    lowest = torch.finfo(scaled_BKN.dtype).min
    share_BKN = torch.softmax(scaled_BKN.masked_fill(ignored_B1N, lowest), dim=2)
    return share_BKN.masked_fill(ignored_B1N, 0.0)


class AdaptiveClassCenters(nn.Module):
    """C (B, K, D) from the global centers G and what the scene says, by one of five fusions.

    With the reliability r = m / (m + n0 N), the weight of a mean of m observations against a prior
    worth n0 N of them (ours):

    - `off`: C = G, a plain similarity head.
    - `gate`: C = G + alpha r (S - G); with alpha 1 and n0 -> 0 it is `replace`. Ours. A learned alpha
      starts at 0, as ReZero's does (arXiv 2003.04887), so that C starts as G.
    - `replace`: C = S, the class centers of ACFNet (arXiv 1909.09408) taken as the classifier's weights;
      ACFNet mixes them by each pixel's coarse prediction into one more feature.
    - `mlp`: C = MLP([S; G]), 2D -> D/2 -> D with a ReLU between: the context-aware classifier (CAC,
      arXiv 2303.11633, tianzhuotao/CAC). There G is the coarse classifier's own weights and the first
      layer has no bias, and a branch that gathers by the labels teaches this one; here G is on its own.
    - `residual-mlp`: C = G + r MLP([S; G]), whose last layer starts at zero, so that C starts as G.
      CAC's MLP as a residual; its start and r are ours.

    A class without mass keeps G exactly, whatever the fusion.
    """

    def __init__(self, num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        dim = config.dim
        self.fusion = config.fusion
        self.assignment = config.assignment
        self.temperature = config.assignment_temperature
        self.mass = config.mass
        self.n0 = config.n0
        self.fixed_alpha = config.alpha
        learns_alpha = config.fusion == "gate" and config.learn_alpha
        self.learned_alpha = nn.Parameter(torch.zeros(())) if learns_alpha else None
        self.global_center_KD = nn.Parameter(torch.randn(num_classes, dim) / math.sqrt(dim))
        if self.fusion in ("mlp", "residual-mlp"):
            self.mlp = nn.Sequential(
                nn.Linear(2 * dim, dim // 2), nn.ReLU(inplace=True), nn.Linear(dim // 2, dim)
            )
        if self.fusion == "residual-mlp":
            for parameter in self.mlp[2].parameters():
                nn.init.zeros_(parameter)

    def forward(
        self, pixel_BND: Tensor, coarse_BKN: Tensor, ignored_BN: Tensor | None = None
    ) -> tuple[Tensor, SceneState | None]:
        """C (B, K, D), and the scene that it was made from: None with fusion `off`.

        Pixels that are True in `ignored_BN` stay out of the scene.
        """
        global_BKD = self.global_center_KD[None].expand(pixel_BND.shape[0], -1, -1)
        if self.fusion == "off":
            return global_BKD, None
        scene = self.gather(pixel_BND, coarse_BKN, ignored_BN)
        return self.fuse(scene, global_BKD), scene

    def gather(self, pixel_BND: Tensor, coarse_BKN: Tensor, ignored_BN: Tensor | None) -> SceneState:
        """Mass, scene centers and reliability.

        m = sum_p W, S = sum_p W x / max(m, tiny). With `pixel-softmax`, S = sum_p softmax_p(A / T_a) x;
        OCRNet has no masses, so they are those of the softmax over classes.
        """
        weight_BKN = weigh(assign(coarse_BKN, self.assignment, self.temperature), self.mass)
        if ignored_BN is not None:
            weight_BKN = weight_BKN.masked_fill(ignored_BN[:, None, :], 0.0)
        mass_BK = weight_BKN.sum(2)
        if self.assignment == "pixel-softmax":
            center_BKD = torch.bmm(share_of_pixels(coarse_BKN, self.temperature, ignored_BN), pixel_BND)
        else:
            center_BKD = torch.bmm(weight_BKN, pixel_BND) / mass_BK.clamp_min(LEAST_MASS)[..., None]
        if self.fusion in ("gate", "residual-mlp"):
            # An n0 too small for the type leaves 0 / 0 for a class without mass.
            trusted_from_BK = mass_BK + self.n0 * pixel_BND.shape[1]
            reliability_BK = mass_BK / trusted_from_BK.clamp_min(torch.finfo(mass_BK.dtype).tiny)
        else:
            reliability_BK = torch.ones_like(mass_BK)
        return SceneState(mass_BK, center_BKD, reliability_BK)

    def fuse(self, scene: SceneState, global_BKD: Tensor) -> Tensor:
        """C (B, K, D) of that scene."""
        center_BKD, reliability_BK1 = scene.center_BKD, scene.reliability_BK[..., None]
        if self.fusion == "gate":
            alpha = self.fixed_alpha if self.learned_alpha is None else self.learned_alpha
            return global_BKD + alpha * reliability_BK1 * (center_BKD - global_BKD)
        if self.fusion == "residual-mlp":
            change_BKD: Tensor = self.mlp(torch.cat((center_BKD, global_BKD), dim=2))
            return global_BKD + reliability_BK1 * change_BKD
        if self.fusion == "mlp":
            center_BKD = self.mlp(torch.cat((center_BKD, global_BKD), dim=2))
        return torch.where((scene.mass_BK > 0)[..., None], center_BKD, global_BKD)
