"""The whole network: normalisation, backbone, head. Pictures in, logits at feature resolution out.

Guarantees: building one does no I/O (weights and architectures are fetched by the caller), every
parameter that wants a gradient gets one in each step, as DDP needs, and nothing in a forward waits for
the device or leaves the graph: the whole exports (torch.export) and compiles as one graph.

Shapes: B batch, K classes, D channels, H W image pixels, h w feature pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.config import BackboneConfig, HeadConfig, ModelConfig, require
from pipeline.model.auto_backbone import TransformersBackbone
from pipeline.model.backbone import Backbone, BackboneChannels
from pipeline.model.deeplab import DeepLabV3PlusHead
from pipeline.model.heads import CcsHead, PlainHead
from pipeline.model.ocr import OcrHead
from pipeline.model.output import SegmenterOutput
from pipeline.model.resnet import ResNet

Head = CcsHead | PlainHead | OcrHead | DeepLabV3PlusHead
"""Modules from (BackboneFeatures, labels or None) to SegmenterOutput."""

MEAN_RGB = (123.675, 116.28, 103.53)
"""ImageNet's mean colour, 0..255; torchvision's weights were trained with it."""
STD_RGB = (58.395, 57.12, 57.375)
"""ImageNet's standard deviation of the same."""


class Segmenter(nn.Module):
    """A semantic segmentation network that takes pictures as they were decoded."""

    mean_3: Tensor
    std_3: Tensor

    def __init__(self, backbone: Backbone, head: Head) -> None:
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
        """Height and width of the features and logits of a picture of that size; DeepLabV3+'s are finer."""
        return self.backbone.feature_size(height, width)

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
    backbone = _build_backbone(config.backbone)
    return Segmenter(backbone, _build_head(backbone.channels, num_classes, config.head))


def outline_segmenter(config: ModelConfig, num_classes: int) -> Segmenter:
    """The network that `build_segmenter` makes, with whatever its memory holds in place of values.

    Memory that nobody wrote to is memory that the system does not give. A backbone of transformers, which
    fills its tensors in more ways than are left out here, is made on the meta device instead: that has no
    memory, but imports torch._dynamo at the first value that is filled in, which is slow.
    Raises what `build_segmenter` raises; torch's seed stays where it is.
    """
    with torch.device("meta" if config.backbone.architecture else "cpu"), _NothingDrawn():
        return build_segmenter(config, num_classes)


class _NothingDrawn(TorchFunctionMode):
    """Leaves tensors as they were allocated where random numbers would fill them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # whatever torch's function returns
        """What the function returns; of one that fills a tensor, be it a method or an init, that tensor."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return (torch.empty if name == "randn" else func)(*args, **kwargs)


def _build_backbone(config: BackboneConfig) -> Backbone:
    if config.architecture:
        return TransformersBackbone(config.architecture)
    return ResNet(config.depth, config.base_width, config.stem, config.output_stride)


def _build_head(channels: BackboneChannels, num_classes: int, config: HeadConfig) -> Head:
    match config.kind:
        case "ccs":
            return CcsHead(channels, num_classes, config)
        case "plain":
            return PlainHead(channels, num_classes, config)
        case "ocr":
            return OcrHead(channels, num_classes, config)
        case "deeplabv3plus":
            return DeepLabV3PlusHead(channels, num_classes, config)
