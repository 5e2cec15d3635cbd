"""Refuses what the host would have to wait for a device for, on a machine without one."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ATEN = torch.ops.aten
READING = frozenset({
    ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.equal.default, ATEN.masked_select.default,
    ATEN._unique2.default, ATEN.repeat_interleave.Tensor,
})  # fmt: skip
"""Operators whose result, or its size, is a value that the device has to tell."""


class NothingIsReadBack(TorchDispatchMode):
    """Within it such an operator raises AssertionError."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in READING, func
        return func(*args, **(kwargs or {}))
