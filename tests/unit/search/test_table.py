"""What a person follows a search by: who runs, how far, how good, how long yet, why one was stopped."""

import dataclasses

from pipeline.search.records import Dimension, Point, SearchRecord, Trial
from pipeline.search.table import ended_line, eta_s, setting_words, table_lines

SPACE = (Dimension("model.head.tau", low=5.0, high=40.0),)
TRIALS = (
    Trial(0, "defaults", {}, "done", (Point(50, 0.4), Point(100, 0.5)), (), 100, 100, 50.0, 60.0),
    Trial(
        1, "tau 9", {}, "stopped", (Point(50, 0.3),), (50,), 100, 55, 27.0, 30.0, "0.300 is not in the best"
    ),
    Trial(2, "tau 20 · " + "x" * 80, {}, "running", (Point(50, 0.6),), (), 100, 72, 36.0, 40.0),
)
RECORD = SearchRecord("s", "val/miou", "max", SPACE, {}, TRIALS, num_trials=6, budget_steps=100)


def test_a_table_has_a_headline_and_a_line_for_each_trial_that_runs():
    head, running = table_lines(RECORD, 6, 2)
    # A trial takes 45 s: 5 of the one that runs and three more are left, two at once.
    assert head == "[tune] 2/6 trials over (1 done, 1 stopped)  best 0.600 (002 @50)  eta 1m10s"
    assert running.split()[:7] == ["002", "running", "step", "72/100", "mIoU", "0.600", "@50"]
    assert running.endswith("…")
    assert len(running) < 120


def test_a_trial_that_is_over_is_one_line_with_the_reason():
    assert ended_line(RECORD, TRIALS[1]) == (
        "[trial] 001 stopped at step 55/100  mIoU 0.300 @50  tau 9: 0.300 is not in the best  "
        "best 0.600 (002 @50)"
    )


def test_the_best_of_a_metric_that_shall_fall_is_the_least():
    falling = dataclasses.replace(RECORD, mode="min")
    assert "best 0.300 (001 @50)" in table_lines(falling, 6, 2)[0]


def test_nothing_is_promised_before_the_first_trial_is_over():
    begun = dataclasses.replace(RECORD, trials=TRIALS[2:])
    assert eta_s(begun, 6, 2) is None
    assert "eta" not in table_lines(begun, 6, 2)[0]
    assert table_lines(dataclasses.replace(RECORD, trials=()), 6, 2) == ["[tune] 0/6 trials over  best -"]


def test_what_differs_from_the_defaults_is_told_as_it_is_typed():
    settings = {"model.head.tau": 9.5, "model.head.fusion": "off", "model.head.learn_tau": True}
    defaults = {"model.head.tau": 15.0, "model.head.fusion": "off", "model.head.learn_tau": False}
    assert setting_words(settings, defaults) == "--model.head.tau 9.5 --model.head.learn_tau true"
