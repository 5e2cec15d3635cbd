"""How the ranks' gradients become one: a part that can be exchanged.

The loss of a rank is its share of the global batch's loss (sums over global counts), so what is
wanted is the *sum* of gradients over ranks and micro-batches.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.errors import PipelineError
from pipeline.world import World

T = TypeVar("T")


class GradientReduction(Protocol):
    """Forward through `module`, backward through `backward`, inside `micro_batch`."""

    @property
    def module(self) -> nn.Module:
        """What the forward goes through."""
        ...

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """Around one forward and backward; `last` closes the optimizer step."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of this rank's share; after the last one they are summed over ranks."""
        ...


class SingleProcess:
    """One rank: nothing to reduce."""

    def __init__(self, model: nn.Module) -> None:
        self.module = model

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """Nothing to prepare."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Plain backward."""
        loss.backward()


class StockDdp:
    """torch's DistributedDataParallel: buckets reduced while the backward goes on."""

    def __init__(self, model: nn.Module, world: World, device: torch.device) -> None:
        """Every rank must hold the same weights; BatchNorm's buffers follow rank 0's."""
        self.module = DistributedDataParallel(
            model,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
        self._world_size = world.size

    def micro_batch(self, last: bool) -> AbstractContextManager[None]:
        """Hold the reduction back until the step's last micro-batch."""
        return nullcontext() if last else self.module.no_sync()

    def backward(self, loss: Tensor) -> None:
        """Backward of world_size times the loss: DDP divides by the world size, a sum is wanted."""
        (loss * self._world_size).backward()


def all_reduce_sum(values: Tensor, world: World) -> Tensor:
    """The sum over ranks, in place, in any order: for whole numbers, whose sums are exact (to 2^53)."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def gather_rows(rows: Tensor, world: World) -> Tensor:
    """The rows of all ranks, equally many of each, in the order of ranks. A collective."""
    if world.size == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(world.size)]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


@torch.no_grad()
def broadcast_buffers(model: nn.Module, world: World) -> None:
    """Give every rank the buffers of rank 0, on which no bit changes."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


@torch.no_grad()
def broadcast_state(module: nn.Module, world: World) -> None:
    """Give every rank the weights and buffers of rank 0. A collective."""
    if world.size > 1:
        for tensor in module.state_dict().values():
            values = tensor.contiguous()  # a kernel that is laid out channels last is not
            dist.broadcast(values, src=0)
            tensor.copy_(values)


def raise_together(problem: PipelineError | None, world: World) -> None:
    """Raises, on every rank, the problem of the first rank that has one. A collective.

    A rank that raised alone would leave the others waiting in their next collective.
    """
    for found in gather_objects(problem, world):
        if found is not None:
            raise found


def gather_objects(value: T, world: World) -> list[T]:
    """Every rank's value, by rank, on every rank. A collective."""
    if world.size == 1:
        return [value]
    values = [value] * world.size
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: T, world: World) -> T:
    """Rank 0's value, on every rank."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
