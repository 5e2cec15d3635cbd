"""The whole network: normalisation, backbone, head. Pictures in, logits at feature resolution out.

Shapes: B batch, K classes, D channels, H W image pixels, h w feature pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from pipeline.config import ModelConfig, require
from pipeline.model.heads import CcsHead, PlainHead, SegmenterOutput
from pipeline.model.resnet import ResNet

MEAN_RGB = (123.675, 116.28, 103.53)
"""ImageNet's mean colour, 0..255; torchvision's weights were trained with it."""
STD_RGB = (58.395, 57.12, 57.375)
"""ImageNet's standard deviation of the same."""


class Segmenter(nn.Module):
    """A semantic segmentation network that takes pictures as they were decoded."""

    mean_3: Tensor
    std_3: Tensor

    def __init__(self, backbone: ResNet, head: CcsHead | PlainHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.register_buffer("mean_3", torch.tensor(MEAN_RGB))
        self.register_buffer("std_3", torch.tensor(STD_RGB))

    def forward(self, image_B3HW: Tensor, label_BHW: Tensor | None = None) -> SegmenterOutput:
        """Predictions for RGB pictures, uint8 or float in 0..255.

        Labels (255 = ignored) are read only while training with `mask_ignored`; then they are needed.
        """
        normalised_B3HW = (image_B3HW - self.mean_3[:, None, None]) / self.std_3[:, None, None]
        output: SegmenterOutput = self.head(self.backbone(normalised_B3HW), label_BHW)
        return output

    def feature_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the logits of a picture of that size."""
        stride = self.backbone.output_stride
        return -(-height // stride), -(-width // stride)

    def backbone_parameters(self) -> Iterator[nn.Parameter]:
        """What published weights can initialise."""
        return self.backbone.parameters()

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """What always starts from scratch."""
        return self.head.parameters()


def channels_last(model: nn.Module) -> None:
    """Lay the kernels out channels last, in place: what convolutions of (B, H, W, C) pictures want.

    Not by `contiguous()`, which leaves 1x1 kernels as they are, with strides that their gradients do
    not have: DDP would then copy each of them.
    """
    for parameter in model.parameters():
        if parameter.ndim == 4:
            nhwc = torch.empty_like(parameter.data, memory_format=torch.channels_last)
            parameter.data = nhwc.copy_(parameter.data)


def build_segmenter(config: ModelConfig, num_classes: int) -> Segmenter:
    """A freshly initialised network; torch's seed decides its weights.

    Raises ConfigError for fewer than two classes, and for a `delta` that no centers can satisfy: the
    mean cosine between K vectors is at least -1/(K-1).
    """
    require(num_classes >= 2, f"a segmentation model needs at least 2 classes, got {num_classes}")
    least = -1.0 / (num_classes - 1)
    require(
        config.head.delta >= least,
        f"model.head.delta {config.head.delta} is out of reach: the mean cosine of {num_classes} centers is "
        f"at least -1/{num_classes - 1} = {least:.4f}; try --model.head.delta 0",
    )
    settings = config.backbone
    backbone = ResNet(settings.depth, settings.base_width, settings.stem, settings.output_stride)
    head = CcsHead if config.head.kind == "ccs" else PlainHead
    return Segmenter(backbone, head(backbone.out_channels, num_classes, config.head))
