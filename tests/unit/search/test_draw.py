"""Proposals lie in their space, spread as their scale says, and are functions of seed and number."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.search.draw import draw_random, draw_sobol, value_at
from pipeline.search.records import Dimension

SPACE = (
    Dimension("tau", low=5.0, high=40.0, log=True),
    Dimension("inter", (0.0,), 1e-3, 3.0, log=True),
    Dimension("form", ("hinge", "identity", "softmax")),
    Dimension("steps", (), 1.0, 4.0, whole=True),
    Dimension("alpha", low=0.0, high=1.0),
)


def inside(dimension, value):
    in_range = dimension.has_range and dimension.low <= value <= dimension.high
    return value in dimension.values or in_range


@given(share=st.floats(0, 1, exclude_max=True), at=st.integers(0, len(SPACE) - 1))
def test_every_place_is_a_value_of_the_space(share, at):
    value = value_at(SPACE[at], share)
    assert inside(SPACE[at], value)
    assert not SPACE[at].whole or isinstance(value, int)


@pytest.mark.parametrize("draw", [draw_random, draw_sobol])
def test_a_proposal_is_a_function_of_seed_and_number(draw):
    drawn = [draw(SPACE, 3, number, 0) for number in range(8)]
    assert drawn == [draw(SPACE, 3, number, 0) for number in range(8)]
    assert len({str(settings) for settings in drawn}) == 8
    assert draw(SPACE, 3, 0, 0) != draw(SPACE, 4, 0, 0)
    assert draw(SPACE, 3, 0, 0) != draw(SPACE, 3, 0, 1), "another attempt is another draw"


def test_ranges_are_even_on_their_scale_and_values_have_their_share():
    shares = (np.arange(4000) + 0.5) / 4000
    taus = np.log([value_at(SPACE[0], share) for share in shares])
    ends = np.linspace(math.log(5), math.log(40), 11)
    assert np.histogram(taus, ends)[0] == pytest.approx([400] * 10, abs=2)
    zeros = sum(value_at(SPACE[1], share) == 0.0 for share in shares)
    assert zeros == pytest.approx(1000, abs=2), "0 in one of four draws"
    counts = np.bincount([value_at(SPACE[3], share) for share in shares])
    assert counts[1:] == pytest.approx([1000] * 4, abs=2)


def test_sobol_leaves_no_quarter_of_a_setting_empty_within_eight_proposals():
    drawn = [draw_sobol(SPACE, 1, number, 0) for number in range(8)]
    quarters = [int(4 * settings["alpha"]) for settings in drawn]
    assert sorted(quarters) == [0, 0, 1, 1, 2, 2, 3, 3]
