"""What Tune is told follows from the search's folder alone, whoever wrote it before."""

import dataclasses

import pytest

from pipeline.errors import Preempted, WorldStateError
from pipeline.launch.tune_conductor import Conductor, Search
from pipeline.launch.tune_folder import Ended, TrialReader, TuneFolder
from pipeline.launch.tune_trial import TrialStop, task_from_text, task_to_text
from pipeline.launch.workers import Workers
from pipeline.recipes import laptop
from pipeline.search.agenda import Order
from pipeline.search.plan import SearchPlan
from pipeline.search.space import defaults_of, read_space
from pipeline.tracking.journal import Journal

CONFIG = laptop()
SPACE = read_space(CONFIG, "recipe", {}, 19)
PLAN = SearchPlan(
    SPACE, defaults_of(CONFIG, SPACE), 4, budget_steps=80, evaluate_every=10, reduction=2, algorithm="random"
)


@pytest.fixture
def search(tmp_path):
    workers = Workers(1, 1, use_gpu=False)
    return Search(TuneFolder(tmp_path / "s"), PLAN, CONFIG, "/shards", "m", workers, 2, "job")


def score(search, number, *values):
    journal = Journal(search.folder.trial_dir(number), "a")
    for at, value in enumerate(values):
        journal.metrics(10 * (at + 1), {"val/miou": value})
    journal.close()


def test_a_new_driver_begins_with_the_trials_that_are_not_over_and_makes_the_same_ones(search):
    conductor = Conductor(search)
    made = [conductor.next_task() for _ in range(3)]
    assert [task.number for task in made] == [0, 1, 2]
    search.folder.write_ended(1, Ended("done", 80))
    search.folder.trial_dir(3).mkdir()  # a driver that was killed before it had noted trial 3
    again = Conductor(search)
    assert [again.next_task().number for _ in range(3)] == [0, 2, 3]
    assert again.next_task() is None
    assert not again.is_over()
    assert search.folder.orders()[2].settings == Conductor(search)._reader.trial(2).settings
    for number in (0, 2, 3):
        search.folder.write_ended(number, Ended("done", 80))
    assert Conductor(search).is_over()


def test_a_task_is_the_trials_config_and_goes_through_ray_as_text(search):
    task = Conductor(search).next_task()
    other = dataclasses.replace(task, number=7)
    assert task_from_text(task_to_text(other)) == other
    assert task.config == CONFIG, "trial 0 is the defaults"


def test_a_trial_is_stopped_by_a_note_that_another_driver_finds(search):
    conductor = Conductor(search)
    tasks = [conductor.next_task() for _ in range(3)]
    score(search, 1, 0.5, 0.6)
    conductor.scored(1)
    score(search, 2, 0.5, 0.4, 0.9, 0.9)
    assert not TrialStop(tasks[2]).stop_wanted()
    Conductor(search).scored(2)
    assert [decision.step for decision in search.folder.decisions(2)] == [10, 20], "and none after its stop"
    assert TrialStop(tasks[2]).is_decided()
    assert not TrialStop(tasks[1]).stop_wanted()
    assert TrialReader(search.folder, PLAN).trial(2).reason.startswith("0.400 is worse than the 0.600 of")


def test_the_defaults_are_never_stopped_and_hold_others_to_their_scores(search):
    conductor = Conductor(search)
    for _ in range(2):
        conductor.next_task()
    score(search, 1, 0.5)
    conductor.scored(1)
    score(search, 0, 0.1, 0.1)
    conductor.scored(0)
    assert search.folder.decisions(0) == []


def test_repeats_are_never_stopped_and_hold_nobody_to_their_scores(search):
    """Their seeds are judged at the end, all of them; others are held against the seed that all have."""
    conductor = Conductor(search)
    for _ in range(3):
        conductor.next_task()
    search.folder.write_order(Order(3, "1 again", {}, seed=1, repeats=1))
    score(search, 1, 0.5)
    score(search, 3, 0.9)
    conductor.scored(1)
    (decision,) = search.folder.decisions(1)
    assert (decision.bar, decision.others) == (None, 0)
    score(search, 2, 0.7)
    score(search, 3, 0.1, 0.1)
    conductor.scored(3)
    assert search.folder.decisions(3) == []


def test_a_stop_reaches_every_trial_of_this_driver_and_none_of_another(search):
    conductor = Conductor(search)
    task = conductor.next_task()
    conductor.stop()
    assert conductor.is_over()
    assert TrialStop(task).stop_wanted()
    assert not TrialStop(task).is_decided(), "it is to go on"
    assert not TrialStop(dataclasses.replace(task, job="later")).stop_wanted()


def test_what_no_trial_can_go_on_from_stops_the_search_with_its_own_exit_code(search):
    conductor = Conductor(search)
    conductor.halt("no room", preempted=True)
    conductor.halt("disk full", preempted=False)
    assert isinstance(conductor.halted, Preempted)
    assert conductor.is_over()
    other = Conductor(search)
    other.halt("disk full", preempted=False)
    assert isinstance(other.halted, WorldStateError)


def test_a_trial_that_tune_gave_up_has_failed_and_the_others_go_on(search):
    conductor = Conductor(search)
    conductor.next_task()
    conductor.lost(0)
    assert "log" in search.folder.ended(0).reason
    assert conductor.next_task().number == 1


def test_a_trial_that_ended_before_tune_gave_it_up_keeps_its_end(search):
    """Its process may die after its last word."""
    conductor = Conductor(search)
    conductor.next_task()
    search.folder.write_ended(0, Ended("done", 80))
    conductor.lost(0)
    assert search.folder.ended(0) == Ended("done", 80)
