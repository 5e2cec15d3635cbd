"""What every head returns: one shape of result for losses, diagnostics and predictions.

Everything here is float32, or float64 in a network that was moved to it, whatever autocast says.

Shapes: B batch, K classes, D channels, h w feature pixels, N = h * w.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class SceneState(NamedTuple):
    """What the adaptive class center module saw of each scene, before it made the centers."""

    mass_BK: Tensor
    """m_k in pixels, 0..N: how much of the scene the coarse prediction gives to the class."""
    center_BKD: Tensor
    """S_k, the scene's own center of the class; zero where the scene says nothing about it."""
    reliability_BK: Tensor
    """r_k = m_k / (m_k + n0 N), in [0, 1); ones with a fusion that has no reliability."""


class SegmenterOutput(NamedTuple):
    """Predictions of a head, at feature resolution."""

    logits_BKhw: Tensor
    """The prediction."""
    coarse_BKhw: Tensor
    """Logits of the coarse (with other heads than `ccs`: auxiliary) prediction."""
    features_BDhw: Tensor
    """What is classified; with `ccs`, what is compared with the centers."""
    centers_BKD: Tensor | None
    """C, the class centers of each scene; None with a head that has none."""
    global_KD: Tensor | None
    """G, the class centers of the whole data set, learned; None likewise."""
    scene: SceneState | None
    """What C was made from; None with fusion `off` and with a head without centers."""
    cosine_BNK: Tensor | None = None
    """Cosine of each pixel's feature with each center C; None where the head does not compute it."""
