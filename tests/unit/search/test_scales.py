"""Where values lie on an axis, and how they and their names are written."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.search.records import Dimension
from pipeline.search.scales import Scale, short_names, value_text

LOG = Scale(Dimension("a.lr", low=1e-3, high=1e-1, log=True))
MIXED = Scale(Dimension("a.lambda", (0.0,), low=1e-3, high=3.0, log=True))
CHOICE = Scale(Dimension("a.form", ("hinge", "car", "identity")))


def test_the_middle_of_a_logarithmic_range_is_its_geometric_mean() -> None:
    assert LOG.place(math.sqrt(1e-3 * 1e-1)) == pytest.approx(0.5)
    assert (LOG.place(1e-3), LOG.place(1e-1)) == (pytest.approx(0.0), pytest.approx(1.0))


def test_a_value_beside_a_range_has_a_place_of_its_own_before_it() -> None:
    assert MIXED.place(0.0) < MIXED.place(1e-3) < MIXED.place(3.0) == pytest.approx(1.0)


def test_values_to_choose_are_evenly_apart_and_others_have_no_place() -> None:
    places = [CHOICE.place(value) for value in ("hinge", "car", "identity")]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])
    assert CHOICE.place("other") is None
    assert Scale(Dimension("a.flag", (0, 1))).place(True) is None, "a number is no truth value"


@given(st.floats(1e-3, 3.0), st.floats(1e-3, 3.0))
def test_places_keep_the_order_of_numbers(one: float, other: float) -> None:
    first, second = sorted((one, other))
    assert MIXED.place(first) <= MIXED.place(second)


@pytest.mark.parametrize("scale", [LOG, MIXED, CHOICE, Scale(Dimension("a.x", low=-0.1, high=0.5))])
def test_ticks_stand_where_their_labels_say_and_do_not_overprint(scale: Scale) -> None:
    ticks = scale.ticks()
    for place, words in ticks:
        value = words if scale is CHOICE else float(words.replace(",", ""))
        assert scale.place(value) == pytest.approx(place, abs=0.01)
    places = [place for place, _ in ticks]
    assert places == sorted(places)
    assert min(b - a for a, b in pairwise(places)) > 0.05


def test_a_number_beyond_the_range_is_held_at_its_end() -> None:
    assert LOG.place(0.0) == 0.0
    assert LOG.place(5.0) == 1.0


def test_names_are_as_short_as_they_can_be_told_apart() -> None:
    names = short_names(["model.head.p", "optim.lr", "loss.inter.p", "model.head.tau"])
    assert names == {
        "model.head.p": "head.p", "optim.lr": "lr", "loss.inter.p": "inter.p", "model.head.tau": "tau",
    }  # fmt: skip


def test_values_are_written_in_few_characters() -> None:
    assert [value_text(v) for v in (0.00234567, 15.0, True, "gate", 20000, 2e-5)] == [
        "0.00235", "15", "true", "gate", "20,000", "2e-05",
    ]  # fmt: skip
