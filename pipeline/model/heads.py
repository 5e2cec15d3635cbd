"""Heads: from the backbone's features to logits; what they share, class center similarity, the control.

All heads (these, `ocr.py`, `deeplab.py`) are `head(features, labels) -> SegmenterOutput` and share the
`Reduction`: a 3x3 convolution to D channels, and a coarse 1x1 prediction on it that gets its own cross
entropy. In `ccs` that prediction also gathers the scene centers, in `ocr` the regions; in `plain` and
`deeplabv3plus` it is an auxiliary loss and nothing else. So a difference between two heads is one of
what comes after: the classifier and its losses.

Shapes: B batch, K classes, C backbone channels, D channels, h w feature pixels.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from pipeline.config import HeadConfig
from pipeline.model.backbone import BackboneChannels, BackboneFeatures
from pipeline.model.ccs import ClassCenterSimilarity
from pipeline.model.output import SegmenterOutput
from pipeline.model.pixel_labels import IGNORE, nearest_labels
from pipeline.model.resnet import conv3x3, initialize_convolutions
from pipeline.model.similarity import at_least_float32


class Reduced(NamedTuple):
    """What every head starts from."""

    features_BDhw: Tensor
    """Features to classify, never negative."""
    dropped_BDhw: Tensor
    """The same after dropout, for linear classifiers."""
    coarse_BKhw: Tensor
    """Logits of the coarse prediction."""


class Reduction(nn.Module):
    """The part that heads share: 3x3 convolution to D channels, BatchNorm, ReLU; the coarse prediction.

    FCN's head (arXiv 1411.4038) as mmsegmentation has it. The auxiliary loss of many published
    configurations hangs on the backbone's third stage instead; here all heads have this one.
    """

    def __init__(self, in_channels: int, num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.conv = conv3x3(in_channels, config.dim)
        self.bn = nn.BatchNorm2d(config.dim)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout2d(config.dropout)
        self.coarse = pixel_classifier(config.dim, num_classes)
        initialize_convolutions(self.conv)

    def forward(self, features_BChw: Tensor) -> Reduced:
        """Features and coarse logits at the size of the backbone's high features."""
        reduced_BDhw = self.relu(self.bn(self.conv(features_BChw)))
        dropped_BDhw = self.dropout(reduced_BDhw)
        return Reduced(reduced_BDhw, dropped_BDhw, self.coarse(dropped_BDhw))


class PlainHead(nn.Module):
    """A 1x1 convolution: the control that class center similarity is measured against."""

    def __init__(self, channels: BackboneChannels, num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.reduction = Reduction(channels.high, num_classes, config)
        self.classifier = pixel_classifier(config.dim, num_classes)

    def forward(self, features: BackboneFeatures, label_BHW: Tensor | None = None) -> SegmenterOutput:
        """Predictions; labels are not read."""
        reduced = self.reduction(features.high_BChw)
        return without_centers(self.classifier(reduced.dropped_BDhw), reduced, reduced.features_BDhw)


class CcsHead(nn.Module):
    """Class center similarity on a signed projection of the features.

    The projection, a 1x1 convolution and BatchNorm, ends without ReLU: after a ReLU no cosine is
    negative. Setting `projection` off compares what the Reduction's ReLU left.
    """

    def __init__(self, channels: BackboneChannels, num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.reduction = Reduction(channels.high, num_classes, config)
        self.projection: nn.Module = nn.Identity()
        if config.projection:
            self.projection = nn.Sequential(
                nn.Conv2d(config.dim, config.dim, 1, bias=False), nn.BatchNorm2d(config.dim)
            )
            initialize_convolutions(self.projection)
        self.similarity = ClassCenterSimilarity(num_classes, config)
        self.mask_ignored = config.mask_ignored

    def forward(self, features: BackboneFeatures, label_BHW: Tensor | None = None) -> SegmenterOutput:
        """Predictions; labels are read only while training with `mask_ignored`."""
        reduced = self.reduction(features.high_BChw)
        # Cast once, here: similarity and losses both want them in float32.
        pixel_BDhw = at_least_float32(self.projection(reduced.features_BDhw))
        coarse_BKhw = at_least_float32(reduced.coarse_BKhw)
        ignored_Bhw = None
        if self.training and self.mask_ignored:
            assert label_BHW is not None, "mask_ignored needs the labels in the forward pass"
            height, width = pixel_BDhw.shape[2:]
            ignored_Bhw = nearest_labels(label_BHW, height, width) == IGNORE
        compared = self.similarity(pixel_BDhw, coarse_BKhw, ignored_Bhw)
        return SegmenterOutput(compared.logits_BKhw, coarse_BKhw, pixel_BDhw, *compared[1:])


def without_centers(logits_BKhw: Tensor, reduced: Reduced, features_BDhw: Tensor) -> SegmenterOutput:
    """The result of a head that has no class centers, in float32 or float64."""
    return SegmenterOutput(
        at_least_float32(logits_BKhw),
        at_least_float32(reduced.coarse_BKhw),
        at_least_float32(features_BDhw),
        centers_BKD=None,
        global_KD=None,
        scene=None,
    )


def pixel_classifier(in_channels: int, num_classes: int) -> nn.Conv2d:
    """A 1x1 convolution to logits, started near zero so that the first loss is log K."""
    classifier = nn.Conv2d(in_channels, num_classes, 1)
    nn.init.normal_(classifier.weight, std=0.01)
    assert classifier.bias is not None
    nn.init.zeros_(classifier.bias)
    return classifier


def pointwise(in_channels: int, out_channels: int) -> nn.Sequential:
    """A 1x1 convolution without bias, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
