"""Slots: reused when nothing looks at them any more, never before, and the ring grows instead of waiting."""

import gc
import os

import numpy as np
import pytest
import torch

from pipeline.data.slots import MappedSlots, SlotLayout, SlotRing

LAYOUT = SlotLayout(batch=3, height=5, width=7)


@pytest.fixture(params=[True, False], ids=["shared", "own"])
def ring(request):
    made = SlotRing(LAYOUT, shared=request.param)
    yield made
    made.close()


def test_a_slot_has_room_for_every_array_and_none_overlap(ring):
    _, arrays = ring.take()
    assert [array.shape for array in arrays] == [(3, 5, 7, 3), (3, 5, 7), (3, 3, 4), (3, 4)]
    assert [array.dtype for array in arrays] == [np.uint8, np.uint8, np.float32, np.int64]
    for value, array in enumerate(arrays, start=1):
        array[...] = value
    assert [set(array.ravel().tolist()) for array in arrays] == [{1}, {2}, {3}, {4}]


def test_a_consumer_that_drops_its_batches_uses_one_slot_for_ever(ring):
    for _ in range(5000):
        ring.take()
    assert len(ring) == 1


def test_a_consumer_that_keeps_its_batches_makes_the_ring_grow_and_shares_no_slot(ring):
    kept = []
    for value in range(50):
        number, arrays = ring.take()
        arrays.image_BHW3[...] = value
        kept.append((number, arrays))
    assert len(ring) == len({number for number, _ in kept}) == 50
    assert all((arrays.image_BHW3 == value).all() for value, (_, arrays) in enumerate(kept))
    del kept, arrays
    for _ in range(50):
        ring.take()
    assert len(ring) == 50


@pytest.mark.parametrize(
    "look",
    [
        lambda arrays: arrays.label_BHW[1:, ::2],
        lambda arrays: arrays.colour_B34,
        lambda arrays: torch.from_numpy(arrays.image_BHW3),
        lambda arrays: torch.from_numpy(arrays.image_BHW3).permute(0, 3, 1, 2)[1],
        lambda arrays: memoryview(arrays.inside_B4),
    ],
    ids=["view", "array", "tensor", "view of a tensor", "buffer"],
)
def test_whatever_looks_at_a_slot_keeps_it_taken(ring, look):
    number, arrays = ring.take()
    held = look(arrays)
    del arrays
    gc.collect()
    other, _ = ring.take()
    assert other != number
    del held
    assert number in {ring.take()[0] for _ in range(2)}


def test_another_process_sees_what_is_written_and_grows_along():
    ring = SlotRing(LAYOUT, shared=True)
    mapped = MappedSlots(os.dup(ring.descriptor), LAYOUT)
    kept = [ring.take() for _ in range(9)]
    for number, arrays in reversed(kept):
        for mine, other in zip(arrays, mapped.arrays(number), strict=True):
            other[...] = number
            assert (mine == number).all()
    ring.close()


def test_arrays_outlive_the_ring_and_their_memory_goes_with_them():
    ring = SlotRing(LAYOUT, shared=True)
    _, arrays = ring.take()
    arrays.label_BHW[...] = 9
    ring.close()
    assert (arrays.label_BHW == 9).all()
    assert num_mapped() == 1
    del arrays
    assert num_mapped() == 0


def num_mapped() -> int:
    with open("/proc/self/maps") as maps:  # noqa: PTH123 - not a file
        return sum("loader-slots" in line for line in maps)
