"""The optimizer, its state by name, and its schedule: the learning rate is a function of the step alone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pipeline.config import OptimConfig
from pipeline.errors import CheckpointError
from pipeline.model.segmenter import Segmenter


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Rate of optimizer step `step` (0-based): linear warm-up, then polynomial decay to min_lr.

    The field's "poly" schedule, (lr - min_lr) * (1 - step / total)^power + min_lr; the warm-up
    multiplies it with a factor that rises from 1/100.
    """
    share = min(step / total_steps, 1.0)
    rate: float = (config.lr - config.min_lr) * (1.0 - share) ** config.poly_power + config.min_lr
    if step < config.warmup_steps:
        rate *= 0.01 + 0.99 * step / config.warmup_steps
    return rate


def build_optimizer(config: OptimConfig, model: Segmenter) -> torch.optim.Optimizer:
    """SGD with momentum or AdamW; norms and biases (vectors) are not decayed.

    Each group carries `multiplier`: its learning rate relative to the schedule's.
    """
    groups = []
    for parameters, multiplier in (
        (model.backbone_parameters(), 1.0),
        (model.head_parameters(), config.head_lr_multiplier),
    ):
        trained = [p for p in parameters if p.requires_grad]
        matrices = [p for p in trained if p.ndim > 1]
        vectors = [p for p in trained if p.ndim <= 1]
        for chosen, decay in ((matrices, config.weight_decay), (vectors, 0.0)):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "multiplier": multiplier})
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the schedule's rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter>//<slot>` tensors."""
    found = {}
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                found[f"{name}//{slot}"] = torch.as_tensor(value)
    return found


def restore_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Put back what `optimizer_tensors` took; raises CheckpointError for an unknown parameter."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, slot = key.split("//")
        if name not in parameters:
            raise CheckpointError(f"the optimizer's state names {name}, which this model does not have")
        parameter = parameters[name]
        # The fused kernels walk raw memory: moments must lie as their parameter does (channels last).
        same = torch.empty_like(parameter) if value.shape == parameter.shape else torch.empty_like(value)
        optimizer.state[parameter][slot] = same.to(parameter.device, value.dtype).copy_(value).detach()


class Ema:
    """An exponential average of the weights, with the latest buffers, in a model of its own."""

    def __init__(self, model: nn.Module, averaged: Segmenter, decay: float) -> None:
        """Start `averaged` (same architecture) from `model`'s weights; decay in (0, 1)."""
        self.averaged: Segmenter = averaged.eval().requires_grad_(False)
        self.decay = decay
        averaged.load_state_dict(model.state_dict())

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow `model` after optimizer step `step` (1-based); early steps are followed faster."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged = [p.data for p in self.averaged.parameters()]
        current = [p.detach() for p in model.parameters()]
        torch._foreach_lerp_(averaged, current, 1.0 - decay)
        for mine, theirs in zip(self.averaged.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
