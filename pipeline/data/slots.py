"""Memory for batches: a ring of reused slots that loader workers fill and tensors look at.

Fresh shared memory costs a page fault every 4 KiB, more than the copy into it; a slot that is used
again costs none. A slot is one batch. It comes back to the ring by itself once nothing looks at its
arrays any more, be it a view or a tensor; while all are held the ring grows, so nobody ever waits for
a slot. Shared memory is an unlinked memfd: it needs no room under /dev/shm, and nothing is left
behind however the processes end.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_ALIGNMENT = 64
"""A cache line, so that no two parts of a slot share one."""


class SlotArrays(NamedTuple):
    """Views of one slot; row b of each is one sample."""

    image_BHW3: NDArray[np.uint8]
    label_BHW: NDArray[np.uint8]
    colour_B34: NDArray[np.float32]
    inside_B4: NDArray[np.int64]


@dataclass(frozen=True)
class SlotLayout:
    """What a slot holds: `batch` crops of `height` x `width` pixels with labels, colour and borders."""

    batch: int
    height: int
    width: int

    @property
    def num_bytes(self) -> int:
        """Bytes of a slot: whole pages, since each slot is mapped on its own."""
        sizes = self._part_bytes()
        return _round_up(sum(_round_up(size, _ALIGNMENT) for size in sizes), mmap.ALLOCATIONGRANULARITY)

    def arrays(self, memory: NDArray[np.uint8]) -> SlotArrays:
        """Views of the slot's bytes; any of them keeps `memory` alive."""
        parts, begin = [], 0
        for size in self._part_bytes():
            parts.append(memory[begin : begin + size])
            begin += _round_up(size, _ALIGNMENT)
        image, label, colour, inside = parts
        return SlotArrays(
            image.reshape(self.batch, self.height, self.width, 3),
            label.reshape(self.batch, self.height, self.width),
            colour.view(np.float32).reshape(self.batch, 3, 4),
            inside.view(np.int64).reshape(self.batch, 4),
        )

    def _part_bytes(self) -> tuple[int, int, int, int]:
        pixels = self.batch * self.height * self.width
        return 3 * pixels, pixels, self.batch * 12 * 4, self.batch * 4 * 8


class SlotRing:
    """Slots for one consumer: `take` gives a free one, or makes one more where all are in use.

    With `shared` the memory is a memfd, `descriptor`, that other processes map; else it is this
    process's own. Arrays stay good after `close`; their memory goes when the last of them does.
    """

    def __init__(self, layout: SlotLayout, shared: bool) -> None:
        self.layout = layout
        self.descriptor = os.memfd_create("loader-slots", os.MFD_CLOEXEC) if shared else -1
        self._slots: list[mmap.mmap] = []
        # Whoever drops the last array gives the slot back, in any thread: a deque takes that unlocked.
        self._free: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._slots)

    def take(self) -> tuple[int, SlotArrays]:
        """A slot's number and arrays; it is free again when they, and all that is made of them, are gone."""
        try:
            number = self._free.pop()  # the one used last is the likeliest to be in a cache
        except IndexError:
            number = self._grow()
        memory = np.frombuffer(self._slots[number], np.uint8)
        # Views and tensors of the arrays refer to `memory` itself, which makes it the one to watch.
        weakref.finalize(memory, self._free.append, number).atexit = False
        return number, self.layout.arrays(memory)

    def arrays(self, number: int) -> SlotArrays:
        """The arrays of a slot that is taken, for whoever fills it; they do not count as holding it."""
        return self.layout.arrays(np.frombuffer(self._slots[number], np.uint8))

    def close(self) -> None:
        """Let go of the memory, as far as nobody holds arrays of it."""
        self._slots.clear()
        self._free.clear()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _grow(self) -> int:
        number, size = len(self._slots), self.layout.num_bytes
        if self.descriptor < 0:
            self._slots.append(mmap.mmap(-1, size))
        else:
            os.ftruncate(self.descriptor, (number + 1) * size)
            self._slots.append(mmap.mmap(self.descriptor, size, offset=number * size))
        return number


class MappedSlots:
    """A worker's view of another process's ring: slots by number, mapped when they are first asked for."""

    def __init__(self, descriptor: int, layout: SlotLayout) -> None:
        self._descriptor, self._layout = descriptor, layout
        self._arrays: dict[int, SlotArrays] = {}

    def arrays(self, number: int) -> SlotArrays:
        """The arrays of a slot."""
        found = self._arrays.get(number)
        if found is None:
            size = self._layout.num_bytes
            mapped = mmap.mmap(self._descriptor, size, offset=number * size)
            found = self._arrays[number] = self._layout.arrays(np.frombuffer(mapped, np.uint8))
        return found


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
