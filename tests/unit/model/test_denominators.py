"""The counts that losses are divided by: what the labels say, and sums that add up."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.model.denominators import Denominators, count_labels, divided, kept_pixels
from pipeline.model.pixel_labels import nearest_labels, presence
from tests.unit.model.loss_loops import (
    CLASSES,
    HEIGHT,
    IGNORE,
    LABEL_HEIGHT,
    LABEL_WIDTH,
    WIDTH,
    make_label,
    nearest,
)


def count(label: torch.Tensor, n_min: int = 1, ohem_share: float = 1.0) -> Denominators:
    return count_labels(label, (HEIGHT, WIDTH), CLASSES, n_min=n_min, ohem_share=ohem_share)


@given(st.integers(0, 10_000), st.integers(1, 4), st.floats(0.001, 1.0))
@settings(max_examples=25)
def test_counts_are_those_of_the_labels_the_losses_see(seed, n_min, share):
    label = make_label(3, seed)
    label[1, :, 3:] = IGNORE
    found = count(label, n_min, share)
    small = nearest(label.numpy())
    pixels = [[int((image == k).sum()) for k in range(CLASSES)] for image in small]
    present = [[number >= n_min for number in row] for row in pixels]
    valid = [int((image != IGNORE).sum()) for image in label]
    assert found.valid_pixels.item() == sum(valid)
    assert found.kept_pixels.item() == sum(math.ceil(share * number) for number in valid)
    assert found.intra_pairs.item() == sum(map(sum, present))
    assert found.inter_images.item() == sum(sum(row) >= 2 for row in present)
    expected = [sum(pixels[b][k] for b in range(3) if present[b][k]) for k in range(CLASSES)]
    assert found.class_pixels_K.tolist() == expected


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_counts_of_parts_add_up_to_those_of_the_whole(share):
    label = make_label(5)
    parts = sum(count(label[i : i + 1], 2, share).packed() for i in range(5))
    assert torch.equal(parts, count(label, 2, share).packed())


def test_counts_are_whole_numbers_whose_sums_are_the_same_bits_in_any_order():
    generator = torch.Generator().manual_seed(0)
    parts = [count(make_label(5)[i : i + 1], 2, 0.3).packed() for i in range(5)]
    assert all(torch.equal(part, part.round()) for part in parts)
    # As many pixels as a global batch of 4096 pictures of 2048x1024 has.
    parts += list(torch.randint(0, 2**33, (60, 4 + CLASSES), generator=generator).double())
    sums = []
    for _ in range(20):
        order = torch.randperm(len(parts), generator=generator).tolist()
        total = torch.zeros_like(parts[0])
        for index in order:
            total = total + parts[index]
        sums.append(total)
    assert sums[0].max() < 2**53
    assert all(torch.equal(total, sums[0]) for total in sums)


def test_packing_is_undone_by_unpacking():
    found = count(make_label(2))
    packed = found.packed()
    assert packed.shape == (4 + CLASSES,)
    assert packed.dtype == torch.float64
    again = Denominators.unpacked(packed)
    assert all(torch.equal(a, b) for a, b in zip(again, found, strict=True))
    assert all(t.ndim == 0 for t in again[:4])


@pytest.mark.parametrize("batch", [0, 2])
def test_without_labels_every_count_is_zero(batch):
    label = torch.full((batch, LABEL_HEIGHT, LABEL_WIDTH), IGNORE, dtype=torch.uint8)
    assert not count(label, ohem_share=0.5).packed().any()


def test_counting_reads_nothing_back_from_the_device():
    # A tensor on `meta` has a shape and no values: reading one raises.
    assert count(make_label(2).to("meta"), 2, 0.3).packed().shape == (4 + CLASSES,)


@given(st.integers(0, 3_000_000), st.floats(1e-6, 1.0))
@example(100, 0.07)  # a hair above 7 in float64, 7 in float32
def test_a_share_keeps_that_many_pixels_and_at_least_one_where_there_is_one(valid, share):
    kept = kept_pixels(torch.tensor([valid]), share).item()
    assert kept == math.ceil(share * valid)
    assert min(valid, 1) <= kept <= valid


def test_dividing_by_nothing_gives_a_zero_that_is_connected():
    summed = torch.zeros((), requires_grad=True)
    quotient = divided(summed * 3, torch.zeros((), dtype=torch.float64))
    assert quotient.item() == 0.0
    assert quotient.dtype == torch.float32
    quotient.backward()
    assert summed.grad is not None


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (11, 18), (20, 30)])
def test_nearest_labels_agree_with_torchs_nearest_exact(height, width):
    label = make_label(2)
    expected = torch.nn.functional.interpolate(label[:, None].float(), (height, width), mode="nearest-exact")
    assert torch.equal(nearest_labels(label, height, width).float(), expected[:, 0])


def test_a_label_of_no_class_is_a_member_of_none():
    label = torch.tensor([[[0, 1, CLASSES, IGNORE]]], dtype=torch.uint8)
    where = presence(label, (1, 4), CLASSES, n_min=1)
    assert where.count_BK.tolist() == [[1, 1] + [0] * (CLASSES - 2)]
    assert where.member_BKN.sum(1).tolist() == [[1, 1, 0, 0]]
    assert np.array_equal(where.label_BN.numpy(), label.flatten(1).numpy())
