"""One optimizer step: `step(micro_batches, denominators)`.

The global denominators (valid pixels, present classes) depend on labels alone and are reduced over
ranks before the forward, so N ranks compute the gradients that one rank would. The wish to stop and
the count of damaged samples ride on the same reduction, and nothing inside a step waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.data.loader import Batch
from pipeline.model.denominators import Denominators, count_labels
from pipeline.model.losses import LossTerms, segmentation_losses
from pipeline.model.segmenter import Segmenter
from pipeline.train import metrics
from pipeline.train.colour import change_colours
from pipeline.train.finite import UpdateGate
from pipeline.train.optim import learning_rate, set_learning_rate
from pipeline.train.reduce import GradientReduction, all_reduce_sum, gather_rows
from pipeline.train.scene_curves import SceneCurves
from pipeline.train.summation_tree import sum_leaves
from pipeline.world import World


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the network at once, on the device."""

    image_B3HW: Tensor
    """RGB, uint8, in channels-last memory."""
    label_BHW: Tensor
    """Train ids, uint8, 255 ignored."""
    position: int
    """First of its positions, which no other micro-batch has: seeds the dropout."""


class LateNumbers:
    """Numbers on their way from the device to the host; read a step later, they have long arrived.

    Reading the tensor itself would wait for everything that the device was given since.
    """

    def __init__(self, values: Tensor) -> None:
        self._host = values.to("cpu", non_blocking=True)
        self._arrived = None
        if values.device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> list[float]:
        """The numbers; waits for the copy alone."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [float(number) for number in self._host.tolist()]


@dataclass(frozen=True)
class Agreement:
    """What all ranks know before a step."""

    denominators: Denominators
    """Counts over the whole global batch."""
    late: LateNumbers
    """How many ranks were asked to stop, and how many samples are in quarantine."""


def to_device(batch: Batch, device: torch.device) -> MicroBatch:
    """The batch as uint8 on the device, in its final colours.

    (B, H, W, 3) becomes a channels-last (B, 3, H, W) for free.
    """
    image_BHW3 = _moved(batch.image_BHW3, device)
    if batch.colour_B34 is not None and batch.inside_B4 is not None:
        colour_B34, inside_B4 = _moved(batch.colour_B34, device), _moved(batch.inside_B4, device)
        image_BHW3 = change_colours(image_BHW3, colour_B34, inside_B4)
    return MicroBatch(
        image_B3HW=image_BHW3.permute(0, 3, 1, 2),
        label_BHW=_moved(batch.label_BHW, device),
        position=batch.positions[0],
    )


def _moved(array: NDArray[Any], device: torch.device) -> Tensor:
    """The array on the device. Pinned before, or the copy would wait for all that the device has to do."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def supports_bfloat16(device: torch.device) -> bool:
    """True where bfloat16 products run in hardware, so that an autocast to it is faster."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return bool(features.get("amx_bf16") or features.get("avx512_bf16"))


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """What the network runs in: bfloat16 where that is asked for or, with `auto`, faster; else as it is."""
    wanted = precision == "bfloat16" or (precision == "auto" and supports_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


class StepRunner:
    """Runs optimizer steps and keeps, on the device, what the curves will ask for."""

    def __init__(
        self,
        model: Segmenter,
        optimizer: torch.optim.Optimizer,
        reduction: GradientReduction,
        *,
        class_names: Sequence[str],
        config: Config,
        world: World,
        device: torch.device,
    ) -> None:
        self._model, self._optimizer, self._reduction = model, optimizer, reduction
        self._num_classes, self._world, self._device = len(class_names), world, device
        self._head, self._optim, self._train = config.model.head, config.optim, config.train
        # A row for each micro-batch: `summary` adds up those of all ranks in an order of its own.
        self._terms_MT = torch.zeros(1, len(LossTerms._fields), device=device, dtype=torch.float64)
        self._grad_norm = torch.zeros((), device=device, dtype=torch.float64)
        self._scenes = SceneCurves(class_names, device)
        self.gate = UpdateGate(model, optimizer, world, device)
        """Knows whether the newest update happened."""

    def agree(
        self, micro_batches: Sequence[MicroBatch], stop_requested: bool, num_quarantined: int = 0
    ) -> Agreement:
        """Sum label counts, wishes to stop and damaged samples over ranks; one small collective a step."""
        counts = [self._count(micro).packed() for micro in micro_batches]
        # Filled in place: a tensor made on the host would have to be waited for.
        local = torch.cat((torch.stack(counts).sum(0), counts[0].new_empty(2)))
        local[-2], local[-1] = float(stop_requested), float(num_quarantined)
        total = all_reduce_sum(local, self._world)
        return Agreement(Denominators.unpacked(total[:-2]), LateNumbers(total[-2:]))

    def _count(self, micro: MicroBatch) -> Denominators:
        _, *size = micro.label_BHW.shape
        return count_labels(
            micro.label_BHW,
            self._model.feature_size(*size),
            self._num_classes,
            n_min=self._head.n_min,
            ohem_share=self._head.ohem_share,
        )

    def step(self, micro_batches: Sequence[MicroBatch], denominators: Denominators, step: int) -> None:
        """Do optimizer step `step` (0-based) on this rank's micro-batches of the global batch.

        Where it turns out not to be finite it changes nothing, on all ranks alike.
        """
        set_learning_rate(self._optimizer, learning_rate(self._optim, step, self._train.schedule_steps(step)))
        self._optimizer.zero_grad(set_to_none=True)
        self._scenes.forget()
        self.gate.begin()
        terms = []
        for index, micro in enumerate(micro_batches):
            self._seed_dropout(micro.position)
            with self._reduction.micro_batch(last=index == len(micro_batches) - 1):
                with autocast(self._train.precision, self._device):
                    output = self._reduction.module(micro.image_B3HW, micro.label_BHW)
                losses = segmentation_losses(output, micro.label_BHW, denominators, self._head)
                self._reduction.backward(losses.total)
            terms.append(torch.stack([term.detach().double() for term in losses]))
            self._scenes.keep(output)
        parameters = [p for p in self._model.parameters() if p.grad is not None]
        norm = self._gradient_norm(parameters)
        self._terms_MT, self._grad_norm = torch.stack(terms), norm.double()
        self.gate.finish(self._terms_MT[:, 0].sum(), norm)

    def summary(self, wait_share: float) -> dict[str, float]:
        """The curves' values at the latest step, over the global batch. A collective.

        `wait_share` is this rank's share of the time since the last summary spent on waiting for
        data; the mean over ranks is returned. Under `BROKEN_RANKS` is how many ranks have weights that
        are not finite. Sums over micro-batches and ranks are taken by a tree over all of them.
        """
        weights = nn.utils.get_total_norm([p.detach() for p in self._model.parameters()])
        num_micro_batches = len(self._terms_MT)
        mine_M2 = self._terms_MT.new_zeros(num_micro_batches, 2)
        mine_M2[0, 0], mine_M2[0, 1] = ~weights.isfinite(), wait_share / self._world.size
        rows = torch.cat([self._terms_MT, mine_M2, self._scenes.sums(num_micro_batches)], dim=1)
        summed = sum_leaves(gather_rows(rows, self._world)).tolist()
        always = len(LossTerms._fields) + 2
        *terms, num_broken, wait = summed[:always]
        rate = self._optimizer.param_groups[0]["lr"] / self._optimizer.param_groups[0]["multiplier"]
        return {
            **dict(zip(metrics.LOSS_TERMS, terms, strict=True)),
            metrics.GRADIENT_NORM: float(self._grad_norm),
            metrics.LEARNING_RATE: rate,
            metrics.DATA_WAIT_SHARE: wait,
            metrics.BROKEN_RANKS: num_broken,
            **self._scenes.values(summed[always:]),
        }

    def _gradient_norm(self, parameters: list[nn.Parameter]) -> Tensor:
        """The global norm, the same on every rank once reduced; clips where the setting asks."""
        if self._optim.clip_norm > 0:
            return nn.utils.clip_grad_norm_(parameters, self._optim.clip_norm)
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def _seed_dropout(self, position: int) -> None:
        """Make dropout a function of (seed, position): no generator to checkpoint, no rank that decides."""
        sequence = np.random.SeedSequence([self._train.seed, position])
        seed = int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))
        # Not torch.manual_seed, which asks after every kind of device: half a millisecond a micro-batch.
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)
