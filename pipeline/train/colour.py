"""The colours of crops, changed on the device: the same pixels as OpenCV makes in the loader.

The matrices come in steps that float32 multiplies and adds without rounding (`data/augment.py` makes
them), so neither the order of the sums nor fused multiply-adds can change a pixel. No matrix product
is used: on GPUs it may keep ten bits only.

Shapes: B crops, H W rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


def change_colours(image_BHW3: Tensor, colour_B34: Tensor, inside_B4: Tensor) -> Tensor:
    """The images, uint8, with each colour matrix applied inside (top, bottom, left, right) of its crop.

    Rounded half to even and clamped to 0..255; outside, the padding stays as it is.
    """
    red, green, blue = image_BHW3.float().split(1, dim=3)
    by_red, by_green, by_blue, plus = colour_B34[:, None, None].unbind(4)
    changed_BHW3 = (red * by_red + green * by_green + blue * by_blue + plus).round_().clamp_(0, 255)
    return torch.where(_is_inside(image_BHW3, inside_B4), changed_BHW3.to(torch.uint8), image_BHW3)


def _is_inside(image_BHW3: Tensor, inside_B4: Tensor) -> Tensor:
    """True for pixels of the picture, (B, H, W, 1)."""
    _, height, width, _ = image_BHW3.shape
    rows_H1 = torch.arange(height, device=image_BHW3.device)[:, None, None]
    columns_W1 = torch.arange(width, device=image_BHW3.device)[:, None]
    top, bottom, left, right = inside_B4[:, :, None, None, None].unbind(1)
    return (rows_H1 >= top) & (rows_H1 < bottom) & (columns_W1 >= left) & (columns_W1 < right)
