"""How a trial ends, and that it ends once: what its training raises or returns, and who wished it to stop."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.config import Config
from pipeline.errors import NonFiniteLossError, Preempted, WorldStateError
from pipeline.launch import tune_trial
from pipeline.launch.tune_folder import SESSIONS, Ended, TuneFolder
from pipeline.launch.tune_trial import TrialStop, TrialTask, train_trial
from pipeline.launch.workers import Workers
from pipeline.recipes import laptop
from pipeline.search.agenda import Order
from pipeline.search.rungs import Decision
from pipeline.tracking.journal import COMMIT, Journal

STOPPED = [Decision(30, 0.4, 0.6, 4)]


@pytest.fixture
def task(tmp_path):
    folder = TuneFolder(tmp_path / "s")
    folder.write_order(Order(0, "t", {}, seed=0))
    return TrialTask(
        str(folder.path), 0, "job", laptop(), "/shards", "m", Workers(1, 1, use_gpu=False)
    )  # fmt: skip


def trained(monkeypatch, task, *, status="ok", step=90, error=None, decided=False):
    """What the trial whose training does so returns, and the launches of that training."""
    calls = []

    def train_on_ray(launch, stop, spares):
        calls.append(launch)
        if decided:
            task.folder.write_decisions(0, STOPPED)
        if error is not None:
            raise error
        return SimpleNamespace(fit={"status": status, "step": step})

    monkeypatch.setattr(tune_trial, "train_on_ray", train_on_ray)
    return train_trial(task, TrialStop(task), None), calls


@pytest.mark.parametrize(
    ("training", "ended"),
    [
        ({}, Ended("done", 90)),
        ({"decided": True}, Ended("done", 90)),  # the stop came when it was over
        ({"status": "preempted", "step": 31, "decided": True}, Ended("stopped", 31)),
        ({"status": "preempted", "step": 31}, None),  # it is to go on
        ({"error": NonFiniteLossError("weights\nbecame NaN")}, Ended("failed", 0, "weights became NaN")),
    ],
)
def test_a_trial_ends_as_its_training_did_and_notes_it(monkeypatch, task, training, ended):
    assert trained(monkeypatch, task, **training)[0] == ended
    assert task.folder.ended(0) == ended
    (session,) = (task.run_dir / SESSIONS).iterdir()
    assert json.loads(session.read_text()).keys() == {"begin_s", "end_s"}


@pytest.mark.parametrize("error", [WorldStateError("disk full"), Preempted("no room"), RuntimeError("Ray")])
def test_what_is_not_the_doing_of_its_settings_does_not_fail_it(monkeypatch, task, error):
    with pytest.raises(type(error)):
        trained(monkeypatch, task, error=error)
    assert task.folder.ended(0) is None
    assert trained(monkeypatch, task)[0] == Ended("done", 90), "the next attempt goes on"
    assert len(list((task.run_dir / SESSIONS).iterdir())) == 2


def test_a_trial_that_has_ended_is_not_trained_again(monkeypatch, task):
    task.folder.write_ended(0, Ended("stopped", 31))
    assert trained(monkeypatch, task) == (Ended("stopped", 31), [])


def test_a_trial_that_is_to_stop_before_it_begins_takes_no_workers(monkeypatch, task):
    task.folder.stop_file("job").parent.mkdir(parents=True)
    task.folder.stop_file("job").touch()
    assert trained(monkeypatch, task) == (None, [])
    assert task.folder.ended(0) is None, "the search was stopped, not the trial"
    task.folder.write_decisions(0, STOPPED)
    assert trained(monkeypatch, task) == (Ended("stopped", 0), [])
    assert task.folder.ended(0) == Ended("stopped", 0)


def test_a_trial_of_other_settings_is_not_trained_on_top(monkeypatch, task):
    trained(monkeypatch, task, status="preempted")
    train = dataclasses.replace(task.config.train, batch_global=4)
    other = dataclasses.replace(task, config=dataclasses.replace(task.config, train=train))
    with pytest.raises(WorldStateError, match=r"train\.batch_global 8, now 4"):
        trained(monkeypatch, other)


@pytest.mark.parametrize(
    ("wanted", "decided", "ended"),
    [(True, True, Ended("stopped", 10)), (True, False, None), (False, False, "no room")],
)
def test_training_that_was_preempted_ends_the_search_only_where_nobody_asked_the_trial_to_stop(
    wanted: bool, decided: bool, ended: Ended | str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, "a")
    journal.event(COMMIT, 10, checkpoint="step_10")
    journal.close()

    def preempted(*_: object) -> None:
        raise Preempted("no room")

    monkeypatch.setattr(tune_trial, "train_on_ray", preempted)
    task = SimpleNamespace(config=Config(), shards="", run_dir=tmp_path, workers=Workers(1, 1, use_gpu=False))
    stop = SimpleNamespace(stop_wanted=lambda: wanted, is_decided=lambda: decided)
    if isinstance(ended, str):
        with pytest.raises(Preempted, match=ended):
            tune_trial._trained(task, stop, None)  # type: ignore[arg-type]
    else:
        assert tune_trial._trained(task, stop, None) == ended  # type: ignore[arg-type]
