"""The class center similarity layer: each pixel compared with the class centers of its scene.

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
from pipeline.model.accm import AdaptiveClassCenters
from pipeline.model.output import SceneState
from pipeline.model.similarity import at_least_float32, cosine, pixel_rows


class Comparison(NamedTuple):
    """What the layer made of a batch of features, float32 or float64."""

    logits_BKhw: Tensor
    """Z, the prediction."""
    centers_BKD: Tensor
    """C, that the pixels were compared with."""
    global_KD: Tensor
    """G, the learned part of C."""
    scene: SceneState | None
    """The scene's part of C; None with fusion `off`."""
    cosine_BNK: Tensor | None
    """cos(x, C), where the similarity is that."""


class ClassCenterSimilarity(nn.Module):
    """The CCS layer: Z = tau * similarity(C, x) + b, with C from ACCM.

    `cosine`: the scaled cosine softmax of NormFace (arXiv 1704.06369), with a bias; |Z - b| <= tau. The
    default tau, 15, is the scale of CAC's published code.
    `dot`: the bare inner product; with fusion `off` and tau 1 the layer is a 1x1 convolution with bias.
    `learn_tau` trains log tau, so that tau stays above zero.

    `class_norm` then takes nn.LayerNorm over the K logits of each pixel, with its own gain and shift
    for each class: the `mask_norm` of Segmenter (arXiv 2105.05633) and of the prototype view
    (arXiv 2203.15102). Its gain starts at 1, as theirs does. It takes the scale over from tau, which
    then only weighs the similarity against b, and |Z| <= sqrt(K - 1) at the start.
    """

    def __init__(self, num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.centers = AdaptiveClassCenters(num_classes, config)
        self.similarity = config.similarity
        self.bias_K = nn.Parameter(torch.zeros(num_classes))
        self.log_tau = nn.Parameter(torch.tensor(math.log(config.tau))) if config.learn_tau else None
        self.fixed_tau = config.tau
        self.class_norm = nn.LayerNorm(num_classes) if config.class_norm else None

    def forward(
        self, pixel_BDhw: Tensor, coarse_BKhw: Tensor, ignored_Bhw: Tensor | None = None
    ) -> Comparison:
        """Logits and centers of a batch; pixels that are True in `ignored_Bhw` stay out of the scenes."""
        with torch.autocast(pixel_BDhw.device.type, enabled=False):
            pixel_BND = pixel_rows(at_least_float32(pixel_BDhw))
            coarse_BKN = at_least_float32(coarse_BKhw).flatten(2)
            ignored_BN = None if ignored_Bhw is None else ignored_Bhw.flatten(1)
            centers_BKD, scene = self.centers(pixel_BND, coarse_BKN, ignored_BN)
            similarity_BNK = self.compare(pixel_BND, centers_BKD)
            logits_BNK = self.scale(similarity_BNK)
        # Rows, columns, then classes in memory: a view of (B, K, N) would have another stride for one image,
        # by which torch takes it for something else and copies it at every turn.
        logits_BKhw = logits_BNK.unflatten(1, pixel_BDhw.shape[2:]).permute(0, 3, 1, 2)
        cosine_BNK = similarity_BNK if self.similarity == "cosine" else None
        return Comparison(logits_BKhw, centers_BKD, self.centers.global_center_KD, scene, cosine_BNK)

    def compare(self, pixel_BND: Tensor, center_BKD: Tensor) -> Tensor:
        """(B, N, K): how similar each pixel is to each center."""
        if self.similarity == "cosine":
            return cosine(pixel_BND, center_BKD)
        return torch.bmm(pixel_BND, center_BKD.transpose(1, 2))

    def scale(self, similarity_BNK: Tensor) -> Tensor:
        """Z (B, N, K)."""
        tau = self.fixed_tau if self.log_tau is None else self.log_tau.exp()
        logits_BNK = tau * similarity_BNK + self.bias_K
        if self.class_norm is None:
            return logits_BNK
        normalised_BNK: Tensor = self.class_norm(logits_BNK)
        return normalised_BNK
