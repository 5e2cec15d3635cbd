"""Gradients summed in an order that is ours: the same bits on a resume, and at other world sizes.

The leaves of the sum are the ranks (`exact`), or virtual shards of the global batch, of which each rank
takes several one after the other (`elastic`). Then the tree over them is the same at every world size
that divides their number. Stock DDP is neither: it makes its buckets anew after its first step, in an
attempt, and a ring adds the parts of a bucket in an order that depends on where they lie in it.

Parameters travel in fixed groups. While the last backward goes on, a group is sent when it is complete,
and added up when the next but one is sent; all ranks do both in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.train.reduce import broadcast_state
from pipeline.train.shard_batch_norm import ShardStatistics
from pipeline.train.summation_tree import LeafShare
from pipeline.train.tree_sum import TreeSum
from pipeline.world import World

GROUP_BYTES = 25 * 2**20
"""Gradients that travel together, at least: as DDP's buckets."""
IN_FLIGHT = 2
"""Groups that are sent before the oldest of them is waited for."""


class FixedOrder:
    """The GradientReduction of `num_leaves` leaves, equally many for each rank.

    A rank with one leaf adds all its micro-batches to it; one with several takes as many micro-batches,
    each a leaf. The statistics of layers that are to be told go by the same tree.
    """

    def __init__(self, model: nn.Module, world: World, num_leaves: int) -> None:
        """All ranks begin with the weights of rank 0. A collective."""
        broadcast_state(model, world)
        self.module = model
        self._share = LeafShare(num_leaves, world.rank, world.size)
        self._merges = self._share.merges()
        self._statistics = ShardStatistics(model, self._share)
        self._groups = [_Group(parameters, self._share) for parameters in _grouped(model)]
        self._leaf, self._launched, self._added, self._last = 0, 0, 0, False
        if world.size > 1:
            for group in self._groups:
                for parameter in group.parameters:
                    parameter.register_post_accumulate_grad_hook(partial(self._note, group))

    @contextmanager
    def micro_batch(self, last: bool) -> Iterator[None]:
        """Around one forward and backward; the leaf ends with it where a rank has several."""
        assert last == (self._leaf == self._share.per_rank - 1) or self._share.per_rank == 1
        self._last = last
        self._statistics.forget()
        yield
        if last:
            self._finish()
        elif self._share.per_rank > 1:
            for group in self._groups:
                group.put_aside(self._merges[self._leaf])
            self._leaf += 1

    def backward(self, loss: Tensor) -> None:
        """Plain backward: the loss is a share of the global batch's, and the gradients are summed."""
        # Before it, as the forward is through: so they are on their way the longest.
        self._statistics.put_aside(self._merges[self._leaf])
        if self._last:
            self._statistics.launch()
        loss.backward()

    def _note(self, group: _Group, parameter: Tensor) -> None:
        """Another gradient is there; in the order of the groups, send what is complete."""
        if not self._last:
            return
        group.num_waiting -= 1
        while self._launched < len(self._groups) and self._groups[self._launched].num_waiting == 0:
            self._launch_next()

    def _launch_next(self) -> None:
        group = self._groups[self._launched]
        group.put_aside(self._merges[self._leaf])
        group.sum.launch()
        self._launched += 1
        if self._launched - self._added > IN_FLIGHT:
            self._add_next()

    def _add_next(self) -> None:
        self._groups[self._added].sum.add()
        self._added += 1

    def _finish(self) -> None:
        """What no gradient came for, and what is still on its way."""
        while self._launched < len(self._groups):
            self._launch_next()
        while self._added < len(self._groups):
            self._add_next()
        for group in self._groups:
            group.take_result()
        self._statistics.finish()
        self._leaf = self._launched = self._added = 0


class _Group:
    """Parameters whose gradients travel together."""

    def __init__(self, parameters: Sequence[nn.Parameter], share: LeafShare) -> None:
        self.parameters = parameters
        self.sum = TreeSum(parameters, share)
        self.num_waiting = len(parameters)

    def put_aside(self, merges: int) -> None:
        """End the leaf: its gradients go to the sum, and the next leaf finds none."""
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in self.parameters
        ]
        for parameter in self.parameters:
            parameter.grad = None
        self.sum.put_aside(gradients, merges)

    def take_result(self) -> None:
        """Make the sums the parameters' gradients."""
        for parameter, total in zip(self.parameters, self.sum.result(), strict=True):
            parameter.grad = total
        self.num_waiting = len(self.parameters)


def _grouped(model: nn.Module) -> list[list[nn.Parameter]]:
    """All that is trained, by type, from the network's end, where gradients come first, to its beginning."""
    groups: list[list[nn.Parameter]] = []
    held = GROUP_BYTES
    for parameter in reversed([p for p in model.parameters() if p.requires_grad]):
        if held >= GROUP_BYTES or parameter.dtype != groups[-1][0].dtype:
            groups.append([])
            held = 0
        groups[-1].append(parameter)
        held += parameter.nbytes
    return groups
