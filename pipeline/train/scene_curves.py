"""What the curves show of the adaptive class centers: whether they work, idle or harm.

A step only keeps what the numbers are made from, a few kilobytes on the device; they are computed when
a point of the curves is due. docs/ccs.md says how to read them.

Shapes: B batch, K classes, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.model.output import SceneState, SegmenterOutput
from pipeline.model.scene_numbers import scene_numbers
from pipeline.train import metrics


class SceneCurves:
    """The diagnostic of the newest step; nothing at all for heads that look at no scene."""

    def __init__(self, class_names: Sequence[str], device: torch.device) -> None:
        self._class_names, self._device = class_names, device
        self._seen: list[tuple[Tensor, Tensor, SceneState]] = []

    def forget(self) -> None:
        """A step begins."""
        self._seen.clear()

    def keep(self, output: SegmenterOutput) -> None:
        """Remember the centers of a micro-batch; waits for nothing."""
        if output.scene is None or output.centers_BKD is None or output.global_KD is None:
            return
        global_KD = output.global_KD.detach().clone()  # the optimizer is about to change it
        scene = SceneState(*(part.detach() for part in output.scene))
        self._seen.append((output.centers_BKD.detach(), global_KD, scene))

    def sums(self, num_micro_batches: int) -> Tensor:
        """(micro-batches, K + 3) float64 that add up over those and ranks.

        (micro-batches, 0) where no scene was looked at, on all ranks alike.
        """
        if not self._seen:
            return torch.zeros(num_micro_batches, 0, dtype=torch.float64, device=self._device)
        return torch.stack([
            torch.cat([part.reshape(-1) for part in scene_numbers(*seen)]) for seen in self._seen
        ])  # fmt: skip

    def values(self, sums: Sequence[float]) -> dict[str, float]:
        """The curves' values from those sums over all ranks: means over the images of the global batch."""
        if not sums:
            return {}
        *gate_K, cosine, distance, images = sums  # SceneNumbers, in its order
        gates = zip(self._class_names, gate_K, strict=True)
        return {metrics.SCENE_GATE.format(name): gate / images for name, gate in gates} | {
            metrics.SCENE_COSINE: cosine / images,
            metrics.SCENE_DISTANCE: distance / images,
        }
