"""BatchNorm over all ranks, on any device.

torch's own SyncBatchNorm takes CUDA tensors only, so N CPU ranks could not be shown to equal one.
On CUDA it is the fused kernel and is used; elsewhere `AllRankBatchNorm` computes the same thing.
Both keep BatchNorm2d's state-dict names.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Normalize(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) with statistics over batch, rows, columns and ranks."""

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: ANN401
        """Returns normalised x, mean_C, biased var_C, and the number of values a channel."""
        dims = (0, 2, 3)
        count = torch.full((1,), x_BCHW.numel() / x_BCHW.shape[1], dtype=x_BCHW.dtype, device=x_BCHW.device)
        mean_C = x_BCHW.mean(dims)
        spread_C = (x_BCHW - mean_C[:, None, None]).square().sum(dims)
        local = torch.cat([mean_C, spread_C, count])
        parts = [torch.empty_like(local) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, local)
        num_channels = x_BCHW.shape[1]
        means_RC, spreads_RC, counts_R1 = torch.stack(parts).split([num_channels, num_channels, 1], dim=1)
        total = counts_R1.sum()
        # Chan's parallel variance, in rank order on every rank: the same bits everywhere.
        mean_C = (means_RC * counts_R1).sum(0) / total
        var_C = (spreads_RC.sum(0) + (counts_R1 * (means_RC - mean_C).square()).sum(0)) / total
        inverse_std_C = torch.rsqrt(var_C + eps)
        normal_BCHW = (x_BCHW - mean_C[:, None, None]) * inverse_std_C[:, None, None]
        ctx.save_for_backward(normal_BCHW, inverse_std_C, total)
        ctx.mark_non_differentiable(mean_C, var_C, total)
        return normal_BCHW, mean_C, var_C, total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        """Gradient of x; the two channel sums are taken over all ranks."""
        grad_BCHW = gradients[0]
        normal_BCHW, inverse_std_C, total = ctx.saved_tensors
        dims = (0, 2, 3)
        sums = torch.cat([grad_BCHW.sum(dims), (grad_BCHW * normal_BCHW).sum(dims)])
        parts = [torch.empty_like(sums) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, sums)
        sums = torch.stack(parts).sum(0)  # not all_reduce, whose order is not ours
        mean_grad_C, mean_product_C = (sums / total).chunk(2)
        centred = grad_BCHW - mean_grad_C[:, None, None] - normal_BCHW * mean_product_C[:, None, None]
        return centred * inverse_std_C[:, None, None], None


class AllRankBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d whose training statistics are those of the batch of all ranks together."""

    def forward(self, input: Tensor) -> Tensor:
        """Input (B, C, H, W) of a floating type; returns the same shape and type."""
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None  # noqa: PT018
        assert self.momentum is not None and self.num_batches_tracked is not None  # noqa: PT018
        # Half precision would lose the statistics; float64 stays what it is.
        wide = input if input.dtype == torch.float64 else input.float()
        normal, mean_C, var_C, total = _Normalize.apply(wide, self.eps)  # type: ignore[no-untyped-call]  # torch's
        with torch.no_grad():
            self.num_batches_tracked += 1
            unbiased_C = var_C * (total / (total - 1).clamp(min=1))
            self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), self.momentum)
        output = normal * self.weight[:, None, None] + self.bias[:, None, None]
        narrowed: Tensor = output.to(input.dtype)
        return narrowed


def synchronize_batch_norm(model: nn.Module, device: torch.device, fixed_order: bool = False) -> nn.Module:
    """The model with every BatchNorm2d taking its statistics over all ranks; values are kept.

    With `fixed_order` not by the fused kernel, which leaves the order of its sums to NCCL.
    """
    if device.type == "cuda" and not fixed_order:
        synchronized: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return synchronized
    return replace_batch_norm(model, AllRankBatchNorm)


def replace_batch_norm(model: nn.Module, kind: type[nn.BatchNorm2d]) -> nn.Module:
    """The model with a layer of that kind, of the same values, in the place of every BatchNorm2d."""
    for name, child in model.named_children():
        if type(child) is nn.BatchNorm2d:
            replacement = kind(child.num_features, child.eps, child.momentum)
            replacement.to(child.weight.device, child.weight.dtype)
            replacement.load_state_dict(child.state_dict())
            setattr(model, name, replacement)
        else:
            replace_batch_norm(child, kind)
    return model
