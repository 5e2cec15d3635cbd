"""The class center similarity layer: scene-conditioned class centers, compared with each pixel.

After Wu, Guo, Li, Yu, Gao, Sang, Semantic Segmentation via Pixel-to-Center Similarity Calculation,
arXiv 2301.04870. Only its abstract was available, so this is a reconstruction from the method's
published relatives: docs/ccs.md gives the equations and names each source.

Mass, gather, norms and similarity run in float32 whatever autocast says (bfloat16 sums stall at
256, float16 squares overflow), and in float64 when the module was moved to that.

Shapes: B batch, K classes, D channels, h w feature pixels, N = h * w.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.config import HeadConfig
from pipeline.model.similarity import at_least_float32, center_cosine

LEAST_MASS = 1e-6
"""Mass, in pixels, under which a scene center is not scaled up any further."""


def assign(coarse_BKN: Tensor, temperature: float, ignored_BN: Tensor | None) -> Tensor:
    """P (B, K, N): softmax over the classes of coarse / temperature; zero for ignored pixels."""
    share_BKN = torch.softmax(coarse_BKN / temperature, dim=1)
    if ignored_BN is None:
        return share_BKN
    return share_BKN.masked_fill(ignored_BN[:, None, :], 0.0)


class SceneCenters(NamedTuple):
    """What one scene says about each class."""

    mass_BK: Tensor
    """m_k = sum_p P_kp, in pixels."""
    center_BKD: Tensor
    """S_k = sum_p P_kp x_p / m_k; zero where the class has no mass."""


def gather(share_BKN: Tensor, pixel_BDN: Tensor) -> SceneCenters:
    """Mass and mean feature of each class under the assignment (ACFNet's class center, arXiv 1909.09408)."""
    mass_BK = share_BKN.sum(2)
    summed_BKD = torch.bmm(share_BKN, pixel_BDN.transpose(1, 2))
    return SceneCenters(mass_BK, summed_BKD / mass_BK.clamp_min(LEAST_MASS)[..., None])


class AdaptiveClassCenters(nn.Module):
    """ACCM: class centers C of a scene from the global centers G and the scene's own centers S.

    With the reliability r = m / (m + n0 N): `residual-mlp` C = G + r MLP([S; G]), which starts as G
    since its last layer starts at zero; `gate` C = G + alpha r (S - G); `off` C = G.
    """

    def __init__(self, num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        dim = config.dim
        self.fusion = config.fusion
        self.temperature = config.assignment_temperature
        self.alpha = config.alpha
        self.n0 = config.n0
        self.global_center_KD = nn.Parameter(torch.randn(num_classes, dim) / math.sqrt(dim))
        if self.fusion == "residual-mlp":
            self.mlp = nn.Sequential(
                nn.Linear(2 * dim, dim // 2), nn.ReLU(inplace=True), nn.Linear(dim // 2, dim)
            )
            for parameter in self.mlp[2].parameters():
                nn.init.zeros_(parameter)

    def forward(self, pixel_BDN: Tensor, coarse_BKN: Tensor, ignored_BN: Tensor | None = None) -> Tensor:
        """C (B, K, D). A class without mass keeps its global center exactly."""
        batch = pixel_BDN.shape[0]
        global_BKD = self.global_center_KD[None].expand(batch, -1, -1)
        if self.fusion == "off":
            return global_BKD
        scene = gather(assign(coarse_BKN, self.temperature, ignored_BN), pixel_BDN)
        reliability_BK1 = (scene.mass_BK / (scene.mass_BK + self.n0 * pixel_BDN.shape[2]))[..., None]
        if self.fusion == "gate":
            return global_BKD + self.alpha * reliability_BK1 * (scene.center_BKD - global_BKD)
        change_BKD: Tensor = self.mlp(torch.cat((scene.center_BKD, global_BKD), dim=2))
        return global_BKD + reliability_BK1 * change_BKD


class ClassCenterSimilarity(nn.Module):
    """The CCS layer: Z = tau * similarity(C, x) + b, with C from ACCM.

    `cosine` bounds |Z - b| by tau; `dot` is the bare inner product, so with fusion `off` and tau 1
    the layer is a 1x1 convolution with bias.
    """

    def __init__(self, num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.centers = AdaptiveClassCenters(num_classes, config)
        self.similarity = config.similarity
        self.bias_K = nn.Parameter(torch.zeros(num_classes))
        self.log_tau = nn.Parameter(torch.tensor(math.log(config.tau))) if config.learn_tau else None
        self.fixed_tau = config.tau

    def forward(
        self, pixel_BDhw: Tensor, coarse_BKhw: Tensor, ignored_Bhw: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, K, h, w) and centers (B, K, D), float32 or float64.

        Pixels that are True in `ignored_Bhw` stay out of the scene centers.
        """
        with torch.autocast(pixel_BDhw.device.type, enabled=False):
            pixel_BDN = at_least_float32(pixel_BDhw).flatten(2)
            coarse_BKN = at_least_float32(coarse_BKhw).flatten(2)
            ignored_BN = None if ignored_Bhw is None else ignored_Bhw.flatten(1)
            center_BKD = self.centers(pixel_BDN, coarse_BKN, ignored_BN)
            if self.similarity == "cosine":
                similarity_BKN = center_cosine(center_BKD, pixel_BDN)
            else:
                similarity_BKN = torch.bmm(center_BKD, pixel_BDN)
            tau = self.fixed_tau if self.log_tau is None else self.log_tau.exp()
            logits_BKN = tau * similarity_BKN + self.bias_K[:, None]
        return logits_BKN.view(coarse_BKhw.shape), center_BKD
