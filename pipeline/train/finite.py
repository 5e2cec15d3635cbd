"""An update that is not finite never happens: decided on the device, for all ranks alike.

Looked at are the loss, the gradient's norm and the statistics that the forward left in BatchNorm. Where
one of them is NaN or infinite on any rank, then on every rank the weights, the optimizer's state, its
counters and the model's buffers keep the bits that they had before the step. No part of this waits for
the device; the host learns of it a step late (train/skipped.py).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipeline.train.reduce import all_reduce_sum
from pipeline.world import World


class UpdateGate:
    """Lets the optimizer's update through, or undoes all that a step has done."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, world: World, device: torch.device
    ) -> None:
        """The optimizer must be a fused one: those alone look at `found_inf`."""
        self._optimizer, self._world = optimizer, world
        self._buffers = _Buffers(model)
        self.skipped = torch.zeros((), device=device)
        """() float32: 1 where the newest update did not happen, else 0; the same on all ranks."""
        self.outcome = torch.zeros(3, dtype=torch.float64, device=device)
        """(3,) float64 of the newest step: `skipped`, loss of the global batch, gradient norm."""

    def begin(self) -> None:
        """Remember what a step's forward is about to change; call before it."""
        self._buffers.remember()

    @torch.no_grad()
    def finish(self, loss: Tensor, gradient_norm: Tensor) -> None:
        """Update by the reduced gradients, or leave everything as it was at `begin`. A collective.

        `loss` is this rank's share; `gradient_norm` is that of all ranks together.
        """
        now = self._buffers.flat()
        # A rank's loss need not reach its gradient, so the gradients' own reduction does not say it all.
        mine = torch.stack([
            loss.double(), gradient_norm.double() / self._world.size, self._buffers.nan_if_broken(now)
        ])  # fmt: skip
        total = all_reduce_sum(mine, self._world)
        self.skipped = (~total.isfinite().all()).float()
        self.outcome = torch.stack([self.skipped.double(), total[0], total[1]])
        # What GradScaler sets; fused optimizers read it on the device, where 1 makes their step nothing.
        self._optimizer.found_inf = self.skipped  # type: ignore[attr-defined]  # torch's protocol
        self._optimizer.step()
        self._buffers.restore(now, self.skipped > 0)


class _Buffers:
    """A model's buffers and what they were; laid end to end by type, a few kernels do for hundreds."""

    def __init__(self, model: nn.Module) -> None:
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            by_type.setdefault(buffer.dtype, []).append(_in_memory_order(buffer))
        self._groups = list(by_type.values())
        self._before = self.flat()

    def flat(self) -> list[Tensor]:
        """The buffers as they are, a new tensor a type."""
        return [torch.cat(group) for group in self._groups]

    def remember(self) -> None:
        """Take the buffers as they are for what is restored."""
        self._before = self.flat()

    def nan_if_broken(self, now: list[Tensor]) -> Tensor:
        """() float64: NaN where a value is not finite that was another one before, else 0."""
        # Constants may be infinite, as the masks of attention are.
        sound = [(new.isfinite() | (new == old)).all() for new, old in zip(now, self._before, strict=True)]
        broken = ~torch.stack(sound).all()
        return torch.where(broken, torch.nan, 0.0).double()

    def restore(self, now: list[Tensor], wanted: Tensor) -> None:
        """Put back what was remembered, where `wanted`."""
        for group, new, old in zip(self._groups, now, self._before, strict=True):
            kept = torch.where(wanted, old, new)
            torch._foreach_copy_(group, list(kept.split([len(buffer) for buffer in group])))


def _in_memory_order(buffer: Tensor) -> Tensor:
    """A view of all of it as one row: channels last, a buffer has no other."""
    dims = sorted(range(buffer.ndim), key=buffer.stride, reverse=True)
    return buffer.permute(dims).view(-1)
