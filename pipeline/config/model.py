"""Settings of the network and its losses.

The equations are in docs/ccs.md; which settings a head does not read is in
`pipeline/idle_settings.py`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal

from pipeline.config.check import require


@dataclass(frozen=True)
class BackboneConfig:
    """A dilated ResNet with torchvision's state-dict names, or any backbone of `transformers`."""

    depth: Literal[10, 18, 34, 50, 101] = 18
    """Layers, by the paper's names; 10 has one block a stage, for laptops."""
    base_width: int = 64
    """Channels of the first stage; 64 is the published network, 32 the half-width one for laptops."""
    stem: Literal["v1", "v1c"] = "v1"
    """One 7x7 convolution, or (v1c) three of 3x3."""
    output_stride: Literal[8, 16, 32] = 8
    """Input pixels a feature; 8 and 16 dilate the last stages."""
    architecture: str = ""
    """A backbone of the extra `transformers` in place of the ResNet: a hub id, a folder with a config.json,
    or its text; recorded as text, so that a trained model needs neither."""
    weights: str = ""
    """Published weights to start from: a path, https://… or hf://owner/repo/file[@revision], with
    #sha256=… where the name does not end in its hash; empty starts from random ones."""

    def __post_init__(self) -> None:
        require(
            8 <= self.base_width <= 256 and self.base_width % 8 == 0,
            f"model.backbone.base_width must be a multiple of 8 in 8..256, got {self.base_width}",
        )


@dataclass(frozen=True)
class HeadConfig:
    """The head and its losses. Fields marked (ccs) say nothing to the other heads and are refused there."""

    kind: Literal["ccs", "plain", "ocr", "deeplabv3plus"] = "ccs"
    """`ccs`: class center similarity; to compare with: `plain` (a 1x1 convolution on the same features, as
    in FCN), `ocr` (object-contextual representations) and `deeplabv3plus`."""
    dim: int = 128
    """Channels D of the features that are classified."""
    dropout: float = 0.1
    """Channel dropout before the classifiers."""
    projection: bool = True
    """Compare a signed 1x1 projection of the features; without, what a ReLU left of them (ccs)."""
    assignment: Literal["softmax", "hard", "pixel-softmax"] = "softmax"
    """How the coarse prediction gathers scene centers: shares over classes, one class a pixel, or shares
    over pixels (ccs)."""
    assignment_temperature: float = 1.0
    """T_a: below 1 sharpens the assignment (ccs)."""
    mass: Literal["sum", "above-chance", "squared"] = "sum"
    """Weight of a share P in a scene center and its mass: P, its excess over 1/K, or P squared; the last
    two leave out pixels whose class is anybody's guess (ccs)."""
    mask_ignored: bool = False
    """Keep pixels labelled 255 out of the scene centers while training (ccs)."""
    n0: float = 0.001
    """Mass, as a share of the pixels, at which a scene center is half trusted (ccs)."""
    fusion: Literal["residual-mlp", "mlp", "gate", "replace", "off"] = "residual-mlp"
    """How scene centers change the global ones; `off` leaves a plain similarity head (ccs)."""
    alpha: float = 1.0
    """Strength of fusion `gate`, idle with the others (ccs)."""
    learn_alpha: bool = False
    """Train alpha, from 0 on, idle but for fusion `gate` (ccs)."""
    similarity: Literal["cosine", "dot"] = "cosine"
    """Pixel-to-center similarity (ccs)."""
    tau: float = 15.0
    """Scale of the similarity before the softmax; with `dot` take 1 (ccs)."""
    learn_tau: bool = False
    """Train tau's logarithm along with the weights (ccs)."""
    class_norm: bool = False
    """LayerNorm over the classes of each pixel's logits (ccs)."""
    lambda_coarse: float = 0.4
    """Weight of the cross entropy of the coarse (or, with other heads, the auxiliary) prediction."""
    ohem_share: float = 1.0
    """Share of each image's labelled pixels, the hardest, that both cross entropies keep; 1 keeps all."""
    lambda_balanced: float = 0.0
    """Weight of a third cross entropy, of the prediction at feature resolution, in which the classes of an
    image count alike: what intra_form `cross-entropy` is to a head without centers."""
    center_source: Literal["accm", "label-image", "global"] = "accm"
    """Centers that the two distances see: those of the scene, the means of the image's labelled pixels, or
    the global ones (ccs)."""
    lambda_inter: float = 0.1
    """Weight of the distance between centers of different classes (ccs)."""
    inter_form: Literal["hinge", "identity", "softmax"] = "hinge"
    """Hinge on the cosine, squared difference of all cosines from the identity, or CAR's softmax
    relation (ccs)."""
    delta: float = 0.0
    """Cosine up to which two centers are far enough apart; of inter_form `hinge` (ccs)."""
    p: int = 2
    """Power of that hinge (ccs)."""
    lambda_intra: float = 1.0
    """Weight of the distance between pixels and their own center (ccs)."""
    intra_form: Literal["cosine", "l1", "cross-entropy"] = "cross-entropy"
    """(1 - cosine)^q, CAR's L1 distance, or the cross entropy of tau * cosine over the classes (ccs)."""
    q: int = 2
    """Power of intra_form `cosine` (ccs)."""
    intra_mean: Literal["image-class", "batch-class", "pixel"] = "image-class"
    """What counts alike in the distance: classes of an image, classes of the batch, or pixels (ccs)."""
    n_min: int = 1
    """Label pixels, at feature resolution, from which a class counts as present in an image (ccs)."""
    detach_center: bool = False
    """Let the intra-class distance move pixels only, not centers (ccs)."""

    @property
    def sees_present_classes(self) -> bool:
        """True where a distance of centers is at work, so that it matters which classes an image has."""
        return self.kind == "ccs" and (self.lambda_inter > 0 or self.lambda_intra > 0)

    def __post_init__(self) -> None:
        require(8 <= self.dim <= 4096, f"model.head.dim must be 8..4096, got {self.dim}")
        require(0.0 <= self.dropout < 1.0, f"model.head.dropout must be in [0, 1), got {self.dropout}")
        require(
            1e-4 <= self.assignment_temperature <= 1e4,
            "model.head.assignment_temperature must be in [0.0001, 10000], got "
            f"{self.assignment_temperature}; its limit at 0 is --model.head.assignment hard",
        )
        for name in ("tau", "n0"):
            value = getattr(self, name)
            require(0.0 < value < math.inf, f"model.head.{name} must be above 0, got {value}")
        for name in ("lambda_coarse", "lambda_balanced", "lambda_inter", "lambda_intra"):
            value = getattr(self, name)
            require(0.0 <= value < math.inf, f"model.head.{name} must be at least 0, got {value}")
        require(
            0.0 < self.ohem_share <= 1.0, f"model.head.ohem_share must be in (0, 1], got {self.ohem_share}"
        )
        require(0.0 <= self.alpha <= 1.0, f"model.head.alpha must be in [0, 1], got {self.alpha}")
        require(-1.0 <= self.delta < 1.0, f"model.head.delta must be in [-1, 1), got {self.delta}")
        require(self.p in (1, 2), f"model.head.p must be 1 or 2, got {self.p}")
        require(self.q in (1, 2), f"model.head.q must be 1 or 2, got {self.q}")
        require(self.n_min >= 1, f"model.head.n_min must be at least 1, got {self.n_min}")


SHARED_BY_HEADS = frozenset(
    {"kind", "dim", "dropout", "lambda_coarse", "ohem_share", "lambda_balanced", "n_min"}
)
CCS_ONLY = frozenset(f.name for f in dataclasses.fields(HeadConfig)) - SHARED_BY_HEADS
"""Head settings that mean nothing to the other heads."""


@dataclass(frozen=True)
class ModelConfig:
    """Backbone and head."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """The feature extractor."""
    head: HeadConfig = field(default_factory=HeadConfig)
    """The classifier and its losses."""
