"""Numbers that are not finite, planted where they arise: activations, losses, gradients, statistics."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from pipeline.train import loop, step
from pipeline.train.optim import Ema
from pipeline.train.step import StepRunner

KINDS = ("activation", "loss", "gradient", "statistics")


def poisoned(kind: str, output: Tensor) -> Tensor:
    """What the backbone's first convolution gives, spoilt; `loss` is not spoilt here."""
    if kind == "activation":  # NaN in BatchNorm, loss and gradient
        return output * torch.nan
    if kind == "gradient":  # of a loss that is finite
        output.register_hook(lambda gradient: gradient * torch.inf)
        return output
    assert kind == "statistics"  # finite activations whose variance is not, in a loss and gradient that are
    return output * 1e30


def plant(
    patch, kind: str, steps: Collection[int], *, rank: int | None = None, micro_batch: int = -1
) -> None:
    """Spoil these steps (0-based) of `fit` on one rank, or on all, in one of their micro-batches."""
    assemble, losses = loop.assemble, step.segmentation_losses

    def assemble_with_poison(config, shards, run_dir, context):
        run = assemble(config, shards, run_dir, context)
        here = rank is None or rank == context.world.rank
        begun = dict.fromkeys(steps, 0)

        def due() -> bool:
            if not here or run.state.step not in steps:
                return False
            begun[run.state.step] += 1
            return begun[run.state.step] - 1 == micro_batch % config.train.accumulation

        def spoil(module, inputs, output):
            return poisoned(kind, output) if module.training and due() else output

        def spoil_loss(*arguments):
            terms = losses(*arguments)  # a sum with a constant: its gradient is what it was
            return terms._replace(total=terms.total + torch.nan) if due() else terms

        if kind == "loss":
            patch.setattr(step, "segmentation_losses", spoil_loss)
        else:
            run.model.backbone.conv1.register_forward_hook(spoil)
        return run

    patch.setattr(loop, "assemble", assemble_with_poison)


def leave_out(patch, steps: Collection[int]) -> None:
    """Make `fit` do nothing at all at these steps (0-based) but to count them."""
    do_step, follow = StepRunner.step, Ema.update
    patch.setattr(StepRunner, "step", _unless(steps, do_step, lambda runner, micro, counts, index: index))
    patch.setattr(Ema, "update", _unless(steps, follow, lambda ema, model, number, skipped: number - 1))


def _unless(steps: Collection[int], original: Callable, index_of: Callable) -> Callable:
    return lambda *arguments: None if index_of(*arguments) in steps else original(*arguments)
