"""What an attempt is said to have been lost by, and whether another is made."""

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError

from pipeline.errors import PipelineError, ShardError
from pipeline.launch.attempt_failure import LostError, give_up, lost_by, raise_if_it_would_repeat
from pipeline.launch.rank_watch import SeenOfAttempt
from pipeline.launch.stall import Stall

GONE = WorkerHealthCheckFailedError("poll failed", failure=RuntimeError())
HUNG = Stall((1,), "step", 5.25, silent=True)


def lost(failures: dict[int, Exception] | Exception, hung: Stall | None = None) -> LostError:
    error = WorkerGroupError("failed", failures) if isinstance(failures, dict) else failures
    found = lost_by(error, hung, SeenOfAttempt({0: "step", 1: "data"}))
    found.__cause__ = error
    return found


def test_killed_rank_is_named_with_its_phase_and_tried_again() -> None:
    found = lost({0: RuntimeError("Connection closed by peer"), 1: GONE})
    assert (str(found), found.phase, found.stood_s) == ("rank 1 lost", "data", 0.0)
    raise_if_it_would_repeat(found)
    with pytest.raises(WorkerGroupError):
        give_up(found)


def test_hung_rank_is_named_with_its_time_and_tried_again_though_all_were_killed() -> None:
    found = lost({0: GONE, 1: GONE}, HUNG)
    assert (found.lost, found.phase, found.stood_s) == ("rank 1 hung (silent for 5.2s in step)", "step", 5.25)
    raise_if_it_would_repeat(found)
    with pytest.raises(PipelineError, match=r"rank 1 hung .* no restart is left; type the same again"):
        give_up(found)


def test_controller_that_died_is_tried_again() -> None:
    found = lost(ActorDiedError())
    assert str(found) == "the worker group failed (ActorDiedError)"
    raise_if_it_would_repeat(found)


def test_error_that_would_only_come_again_is_raised_as_the_worker_raised_it() -> None:
    wrapped = RuntimeError("wrapped by Ray")
    wrapped.__cause__ = ShardError("train-000000.tar is damaged")
    with pytest.raises(ShardError, match=r"train-000000\.tar"):
        raise_if_it_would_repeat(lost({0: wrapped, 1: GONE}))
    with pytest.raises(WorkerGroupError):
        raise_if_it_would_repeat(lost({0: TypeError("a bug"), 1: GONE}))
