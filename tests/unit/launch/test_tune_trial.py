"""How a trial ends whose training was stopped on its way."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.config import Config
from pipeline.errors import Preempted
from pipeline.launch import tune_trial
from pipeline.launch.tune_folder import Ended
from pipeline.launch.workers import Workers
from pipeline.tracking.journal import COMMIT, Journal


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
