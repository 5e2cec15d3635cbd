"""Attempts one after the other, by what became of each; no Ray takes part."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from pipeline.config import Config
from pipeline.errors import Preempted
from pipeline.launch import ray_train
from pipeline.launch.attempt_failure import LostError
from pipeline.launch.rank_watch import SeenOfAttempt
from pipeline.launch.ray_attempt import Launch
from pipeline.launch.workers import Workers
from pipeline.launch.world_size import WorldRange
from pipeline.settings import with_settings
from pipeline.tracking.journal import COMMIT, START, Event, Journal, read_journal


@pytest.fixture
def attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Trains by attempts that are lost at step 14 of a checkpoint at 10, `stopped` before that."""

    def train(*, stopped: bool, max_failures: int = 3) -> Any:
        signals = SimpleNamespace(stop_wanted=lambda: signals.asked, asked=False)

        def lose(launch: Launch, attempt: str, *_: object) -> None:
            journal = Journal(launch.run_dir, attempt)
            journal.event(START, 0)
            journal.event(COMMIT, 10, checkpoint="step_10")
            journal.close()
            signals.asked = stopped
            lost = LostError("rank 1 lost", "step", 0.0, SeenOfAttempt({1: "step"}, 14, 5.0))
            raise lost from ActorDiedError()

        monkeypatch.setattr(ray_train, "run_attempt", lose)
        monkeypatch.setattr(ray_train, "stage_on_nodes", lambda *_: None)
        monkeypatch.setattr(ray_train, "wait_for_room", lambda *_: 2)
        config = with_settings(
            Config(), {"launch.max_failures": max_failures, "launch.spares": False, "train.steps": 20}
        )
        launch = Launch(config, "", tmp_path, Workers(2, 1, use_gpu=False), WorldRange(2, 2))
        return ray_train.train_on_ray(launch, signals)

    return train


def test_ranks_that_are_lost_after_a_stop_was_asked_for_end_the_job_as_preempted(
    attempts: Callable[..., Any], tmp_path: Path
) -> None:
    said = "rank 1 lost before all had stopped: 4 steps are lost; type the same with --name .* from step 10"
    with pytest.raises(Preempted, match=said) as raised:
        attempts(stopped=True)
    assert raised.value.exit_code == 75
    assert [r.name for r in read_journal(tmp_path) if isinstance(r, Event)].count("failure") == 1


def test_so_many_attempts_are_made_as_are_allowed(attempts: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ActorDiedError):
        attempts(stopped=False, max_failures=2)
    assert [r.name for r in read_journal(tmp_path) if isinstance(r, Event)].count("failure") == 3
