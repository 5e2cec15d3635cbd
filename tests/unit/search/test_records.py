"""A search's record survives JSON, and an unknown field is refused."""

import json

import pytest

from pipeline.search.records import Dimension, Point, SearchRecord, Trial, from_json, to_json

SPACE = (
    Dimension("model.head.tau", low=5.0, high=40.0, log=True),
    Dimension("model.head.lambda_inter", values=(0,), low=1e-3, high=3.0, log=True),
    Dimension("model.head.inter_form", values=("hinge", "softmax")),
    Dimension("model.head.learn_tau", values=(False, True)),
)
RECORD = SearchRecord(
    "s", "val/miou", "max", SPACE, {"model.head.tau": 15.0},
    (
        Trial(
            0, "defaults", {}, "done", (Point(10, 0.25), Point(20, 0.5)), (10,), 20, 20, 3.5, 5.0,
            run_dir="trials/000",
        ),
        Trial(1, "tau 9", {"model.head.tau": 9.0, "model.head.learn_tau": True}, "stopped", reason="below"),
        Trial(2, "defaults", {}, seed=7, repeats=0),
    ),
    2, 20, (10,), held_out=("drive1",), facts={"recipe": "laptop"},
)  # fmt: skip


def test_a_record_is_the_same_after_json():
    assert from_json(json.loads(json.dumps(to_json(RECORD)))) == RECORD


def test_a_record_with_an_unknown_field_is_refused():
    with pytest.raises(TypeError):
        from_json(to_json(RECORD) | {"colour": "red"})


def test_repeats_are_told_from_the_trials_of_the_search():
    assert [trial.number for trial in RECORD.searched()] == [0, 1]
    assert [trial.number for trial in RECORD.repeats_of(0)] == [2]
    assert (RECORD.trials[0].best, RECORD.trials[1].best) == (0.5, None)
