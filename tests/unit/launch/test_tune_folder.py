"""A search is what its folder says: trials, decisions and ends are read back as they were written."""

import json

import pytest

from pipeline.errors import WorldStateError
from pipeline.launch.tune_folder import DECISIONS, ENDED, ORDER, SESSIONS, Ended, TrialReader, TuneFolder
from pipeline.search.agenda import Order
from pipeline.search.plan import SearchPlan
from pipeline.search.records import Dimension, Point
from pipeline.search.rungs import Decision
from pipeline.tracking.journal import Journal

PLAN = SearchPlan(
    (Dimension("model.head.tau", low=5.0, high=40.0),), {"model.head.tau": 15.0}, num_trials=3,
    budget_steps=90, evaluate_every=10,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    folder = TuneFolder(tmp_path / "s")
    for number in range(3):
        folder.write_order(Order(number, f"t{number}", {"model.head.tau": 5.0 + number}, seed=0))
    return folder


def record(folder, number, start, *scores, attempt="0001-a"):
    journal = Journal(folder.trial_dir(number), attempt)
    journal.event("start", start)
    for at, score in enumerate(scores):
        journal.metrics(start + 10 * (at + 1), {"val/miou": score})
    journal.close()


def test_a_trial_is_running_until_its_end_was_written_and_has_the_points_that_count(folder):
    record(folder, 1, 0, 0.1, 0.2, 0.3)
    record(folder, 1, 10, 0.25, attempt="0002-a")  # went on from step 10
    reader = TrialReader(folder, PLAN)
    first, second, _ = reader.trials()
    assert (first.state, first.points, first.step) == ("running", (), 0)
    assert (second.state, second.points) == ("running", (Point(10, 0.1), Point(20, 0.25)))
    assert (second.step, second.budget_steps, second.run_dir) == (20, 90, "trials/001")
    folder.write_ended(1, Ended("done", 90))
    assert (reader.trial(1).state, reader.trial(1).step) == ("done", 90)
    assert reader.trial(1) is reader.trial(1), "what is over is read once"


def test_a_trial_that_was_stopped_has_its_rungs_and_the_reason(folder):
    assert not folder.stop_decided(2)
    passed = Decision(10, 0.5, None, 0)
    folder.write_decisions(2, [passed])
    assert not folder.stop_decided(2)
    folder.write_decisions(2, [passed, Decision(30, 0.4, 0.6, 4)])
    assert folder.stop_decided(2)
    folder.write_ended(2, Ended("stopped", 31))
    trial = TrialReader(folder, PLAN).trial(2)
    assert (trial.state, trial.rungs, trial.step) == ("stopped", (10, 30), 31)
    assert trial.reason == "0.400 is not in the best 1/3 of 4 before it at step 30 (from 0.600 on)"
    folder.write_ended(2, Ended("failed", 31, "weights became NaN"))
    assert TrialReader(folder, PLAN).trial(2).reason == "weights became NaN"
    folder.write_ended(2, Ended("done", 90))
    assert not TrialReader(folder, PLAN).trial(2).reason, "it was over before it heard"


def test_a_trial_whose_note_was_not_written_is_not_there_and_its_number_is_taken_again(folder):
    folder.trial_dir(3).mkdir()
    assert [order.number for order in folder.orders()] == [0, 1, 2]
    folder.write_order(Order(3, "t3", {}, seed=2, repeats=1))
    assert folder.orders()[3] == Order(3, "t3", {}, seed=2, repeats=1)


def test_time_beside_training_is_that_of_all_sessions_less_that_of_all_attempts(folder):
    run_dir = folder.trial_dir(0)
    (run_dir / "journal").mkdir()
    (run_dir / SESSIONS).mkdir()

    def attempt(number, start_s, last_s):
        lines = [
            {"kind": "event", "name": "lost", "step": 0, "time_s": start_s - 3},  # while it was assembled
            {"kind": "event", "name": "start", "step": 0, "time_s": start_s},
            {"kind": "metrics", "step": 10, "values": {"val/miou": 0.5}, "time_s": last_s},
        ]
        path = run_dir / "journal" / f"{number:04d}-{number:04d}-a.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    (run_dir / SESSIONS / "000.json").write_text(json.dumps({"begin_s": 100.0}))
    trial = TrialReader(folder, PLAN).trial(0)
    assert (trial.train_s, trial.whole_s) == (0.0, 0.0), "killed before its first record"
    attempt(1, 105.0, 120.0)
    (run_dir / SESSIONS / "000.json").write_text(json.dumps({"begin_s": 100.0}))  # killed after 120
    trial = TrialReader(folder, PLAN).trial(0)
    assert (trial.train_s, trial.whole_s) == (15.0, 20.0)
    attempt(2, 203.0, 210.0)
    (run_dir / SESSIONS / "001.json").write_text(json.dumps({"begin_s": 200.0, "end_s": 212.0}))
    (run_dir / SESSIONS / "000.json").write_text(json.dumps({"begin_s": 100.0, "end_s": 121.0}))
    trial = TrialReader(folder, PLAN).trial(0)
    assert (trial.train_s, trial.whole_s) == (22.0, 33.0)


@pytest.mark.parametrize("name", [ORDER, DECISIONS, ENDED])
@pytest.mark.parametrize("text", ["", "{", "null", '{"of": "another version"}'])
def test_a_file_that_cannot_be_read_is_named(folder, name, text):
    (folder.trial_dir(1) / name).write_text(text)
    with pytest.raises(WorldStateError, match=rf"trials/001/{name} cannot be read \(") as refused:
        TrialReader(folder, PLAN).trials()
    assert "\n" not in str(refused.value)
