"""Tensors copied to host memory that is laid out as a safetensors file, and used again for every save.

So a save costs training one copy, and whoever writes needs no further one: the memory is the file's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

PIECE_BYTES = 4 << 20
"""Hashed, then written, while still in the cache of the core."""
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip


class TensorFile:
    """The content of one safetensors file: an aligned header, then all tensors without gaps.

    The format: 8 bytes with the length of the header, little endian; the header, JSON; the data.
    https://github.com/huggingface/safetensors#format
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, pinned: bool) -> None:
        """Memory for tensors of these names, types and shapes; `pinned` for a GPU to copy to."""
        # The widest types first: every tensor is aligned to its own type, as readers map it.
        names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        self._layout = {name: (tensors[name].dtype, tensors[name].shape) for name in names}
        fields: dict[str, dict[str, Any]] = {}
        end = 0
        for name, (dtype, shape) in self._layout.items():
            begin, end = end, end + math.prod(shape) * dtype.itemsize
            fields[name] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        header = json.dumps(fields, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        self._header = len(header).to_bytes(8, "little") + header
        self._data = torch.empty(end, dtype=torch.uint8, pin_memory=pinned)
        self._views = {}
        for name, (dtype, shape) in self._layout.items():
            begin, end = fields[name]["data_offsets"]
            self._views[name] = self._data[begin:end].view(dtype).view(shape)

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether it was made for such tensors."""
        return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()} == self._layout

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors in; those on a GPU have arrived once it has done all that it was given so far."""
        for name, view in self._views.items():
            view.copy_(tensors[name].detach(), non_blocking=True)

    def pieces(self) -> Iterator[memoryview]:
        """The file's bytes in order, without a copy."""
        yield memoryview(self._header)
        data = memoryview(self._data.numpy())  # type: ignore[arg-type]  # a buffer all the same
        for begin in range(0, len(data), PIECE_BYTES):
            yield data[begin : begin + PIECE_BYTES]


class HostCopy:
    """The tensors of a checkpoint at one moment, by file; taken by one thread and read by another."""

    def __init__(self) -> None:
        self._files: dict[str, TensorFile] = {}
        self._arrived: torch.cuda.Event | None = None

    def take(self, files: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Copy the tensors as they are now, over those of the time before.

        On a GPU this only asks for the copies, in the order of its other work: they come before whatever
        changes the weights next (some 20 ms for half a GB), and the host waits for none of it.
        """
        on_gpu = any(tensor.is_cuda for tensors in files.values() for tensor in tensors.values())
        for name, tensors in files.items():
            if name not in self._files or not self._files[name].fits(tensors):
                self._files[name] = TensorFile(tensors, pinned=on_gpu)
            self._files[name].fill(tensors)
        self._arrived = None
        if on_gpu:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def pieces(self) -> dict[str, Iterator[memoryview]]:
        """The content of each file; waits until it has arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return {name: file.pieces() for name, file in self._files.items()}
