"""Tensors of all ranks summed by a tree of our own, with the traffic of a ring.

Each rank cuts its sums into as many chunks as there are ranks and sends each rank one; it adds, by the
tree, what it was sent of its own chunk, and sends that to all. So no number depends on how a library
orders an all-reduce, nor on which tensors travel together. Everything runs asynchronously: `launch`,
`add` and `result` wait for as little as they can.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.train.summation_tree import LeafShare, sum_nodes

ALIGNMENT = 16
"""Numbers to whose multiple each tensor begins: kernels take other turns where memory is not aligned, and a
rank alone has each tensor in memory of its own."""


class TreeSum:
    """The sum over all leaves of a list of tensors of one type, always of the same shapes."""

    def __init__(self, like: Sequence[Tensor], share: LeafShare) -> None:
        self._share = share
        self._nodes = share.nodes()
        self._shapes = [tensor.shape for tensor in like]
        self._strides = [tensor.stride() for tensor in like]
        self._begins, end = [], 0
        for tensor in like:
            self._begins.append(end)
            end += -(-tensor.numel() // ALIGNMENT) * ALIGNMENT
        self._chunk = -(-end // share.size)
        self._like = like[0].detach()
        self._aside: list[list[Tensor]] = []
        self._sent = self._received = self._flat = self._like.new_empty(0)
        self._work: dist.Work | None = None

    def put_aside(self, tensors: list[Tensor], merges: int) -> None:
        """Take a leaf, and add to it the newest `merges` sums; the tensors are ours from now on."""
        for _ in range(merges):
            torch._foreach_add_(tensors, self._aside.pop())
        self._aside.append(tensors)

    def launch(self) -> None:
        """Send what this rank's leaves add up to."""
        share = self._share
        if share.size == 1:
            return
        packed = self._like.new_empty(len(self._aside), share.size, self._chunk)
        for flat, tensors in zip(packed.flatten(1), self._aside, strict=True):
            torch._foreach_copy_(self._views(flat), tensors)
        self._aside.clear()
        num_nodes = [len(nodes) for nodes in self._nodes]
        self._sent = packed.transpose(0, 1).contiguous()
        self._received = self._like.new_empty(sum(num_nodes), self._chunk)
        self._work = dist.all_to_all_single(
            self._received.flatten(),
            self._sent.flatten(),
            output_split_sizes=[num * self._chunk for num in num_nodes],
            input_split_sizes=[num_nodes[share.rank] * self._chunk] * share.size,
            async_op=True,
        )

    def add(self) -> None:
        """Sum this rank's chunk, and send it."""
        if self._share.size == 1:
            return
        assert self._work is not None
        self._work.wait()
        nodes = [node for of_rank in self._nodes for node in of_rank]
        chunk = sum_nodes(dict(zip(nodes, self._received.unbind(0), strict=True)), self._share.num_leaves)
        self._flat = self._like.new_empty(self._share.size * self._chunk)
        self._work = dist.all_gather_single(self._flat, chunk, async_op=True)

    def result(self) -> list[Tensor]:
        """The sums, the same bits on every rank; nothing of them is kept here."""
        if self._share.size == 1:
            (sums,) = self._aside
            self._aside = []
            return sums
        assert self._work is not None
        self._work.wait()
        flat, self._work = self._flat, None
        self._sent = self._received = self._flat = self._like.new_empty(0)
        return self._views(flat)

    def _views(self, flat: Tensor) -> list[Tensor]:
        places = zip(self._shapes, self._strides, self._begins, strict=True)
        return [
            flat[begin : begin + prod(shape)].as_strided(shape, stride) for shape, stride, begin in places
        ]
