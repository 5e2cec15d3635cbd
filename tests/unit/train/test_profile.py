"""The trace of a few steps, beside the deadlines of their phases."""

from contextlib import contextmanager

import torch

from pipeline.train.profile import SKIPPED_STEPS, StepProfiler
from pipeline.world import World


def test_trace_is_written_in_the_phase_of_a_checkpoint_as_it_may_take_longer_than_a_step(
    tmp_path, surroundings
):
    entered = []

    class Told(surroundings):
        @contextmanager
        def phase(self, name):
            entered.append((name, list(tmp_path.rglob("*.json"))))
            yield
            entered.append((name, list(tmp_path.rglob("*.json"))))

    profiler = StepProfiler(2, 100, tmp_path / "trace", World())
    for _ in range(SKIPPED_STEPS + 4):
        torch.ones(4).sum()
        profiler.step(Told())
    profiler.close()
    trace = tmp_path / "trace" / "steps_110.json"
    assert entered == [("checkpoint", []), ("checkpoint", [trace])]
