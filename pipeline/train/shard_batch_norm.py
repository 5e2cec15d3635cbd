"""BatchNorm over one virtual shard at a time, with running statistics that no world size changes.

A virtual shard is normalised by its own mean and variance, as a rank's micro-batch is. The running
statistics move once a step, towards the mean of all shards' statistics, which is summed by the same tree
as the gradients; torch's layer would move them with each forward of this rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.train.batch_norm import replace_batch_norm
from pipeline.train.summation_tree import LeafShare
from pipeline.train.tree_sum import TreeSum


class ShardBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that only notes what its running statistics have to move towards.

    State-dict names are BatchNorm2d's; as long as it is not told, a training forward changes no state.
    """

    shard_mean: Tensor
    shard_var: Tensor

    def __init__(self, num_features: int, eps: float, momentum: float | None) -> None:
        super().__init__(num_features, eps, momentum)
        for name in ("shard_mean", "shard_var"):
            self.register_buffer(name, torch.zeros(num_features), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """Input (B, C, H, W) of a floating type; returns the same shape and type."""
        if not self.training:
            return super().forward(input)
        # A momentum of 1 leaves the batch's own mean and unbiased variance in them.
        return F.batch_norm(
            input, self.shard_mean, self.shard_var, self.weight, self.bias, True, 1.0, self.eps
        )

    @torch.no_grad()
    def move(self, mean_C: Tensor, var_C: Tensor) -> None:
        """One step of the running statistics towards these."""
        assert self.running_mean is not None and self.running_var is not None  # noqa: PT018
        assert self.momentum is not None and self.num_batches_tracked is not None  # noqa: PT018
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(var_C, self.momentum)


def take_shard_statistics(model: nn.Module) -> None:
    """Make every BatchNorm2d a ShardBatchNorm; raises ConfigError for other layers that keep statistics."""
    replace_batch_norm(model, ShardBatchNorm)
    for name, module in model.named_modules():
        keeps = getattr(module, "running_mean", None) is not None
        if keeps and not isinstance(module, ShardBatchNorm):
            raise ConfigError(
                f"train.determinism elastic knows no {type(module).__name__} ({name}): its statistics would "
                "depend on the number of workers; take --train.determinism exact, or another backbone"
            )


class ShardStatistics:
    """The statistics of all shards on their way to the running ones; nothing where no layer asks for it."""

    def __init__(self, model: nn.Module, share: LeafShare) -> None:
        self._layers = [module for module in model.modules() if isinstance(module, ShardBatchNorm)]
        self._num_shards = share.num_leaves
        self._sum = TreeSum(self._noted(), share) if self._layers else None

    def forget(self) -> None:
        """Before a forward. What is there is multiplied by 0, not written over, so a NaN would stay."""
        if self._sum:
            torch._foreach_zero_(self._noted())

    def put_aside(self, merges: int) -> None:
        """Take what the layers noted in the newest forward."""
        if self._sum:
            self._sum.put_aside([noted.clone() for noted in self._noted()], merges)

    def launch(self) -> None:
        """Send them; a step's last forward is through."""
        if self._sum:
            self._sum.launch()

    def finish(self) -> None:
        """Move the running statistics, alike on every rank."""
        if self._sum is None:
            return
        self._sum.add()
        means = [total / self._num_shards for total in self._sum.result()]
        for layer, mean_C, var_C in zip(self._layers, means[0::2], means[1::2], strict=True):
            layer.move(mean_C, var_C)

    def _noted(self) -> list[Tensor]:
        return [noted for layer in self._layers for noted in (layer.shard_mean, layer.shard_var)]
