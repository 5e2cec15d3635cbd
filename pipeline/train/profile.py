"""A trace of a few training steps, for chrome://tracing or Perfetto."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from pipeline.train.context import RunContext
from pipeline.world import World

logger = logging.getLogger(__name__)

SKIPPED_STEPS = 10
"""Steps before the trace: caches fill and DDP rebuilds its buckets."""


class StepProfiler:
    """Traces `num_steps` steps of rank 0 after the first ten of the attempt; 0 traces nothing."""

    def __init__(self, num_steps: int, start_step: int, folder: Path, world: World) -> None:
        self._profile: profile | None = None
        if num_steps == 0 or not world.is_main:
            return
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        path = folder / f"steps_{start_step + SKIPPED_STEPS}.json"

        def export(finished: profile) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            finished.export_chrome_trace(str(path))
            logger.info("[event] traced %d steps: %s", num_steps, path)

        self._steps_left = SKIPPED_STEPS + num_steps
        plan = schedule(wait=SKIPPED_STEPS - 1, warmup=1, active=num_steps, repeat=1)
        self._profile = profile(activities=activities, schedule=plan, on_trace_ready=export)
        self._profile.start()

    def step(self, context: RunContext) -> None:
        """Call at the end of each step, outside of its phase: writing the trace may take long."""
        if self._profile:
            self._steps_left -= 1
            with context.phase("checkpoint") if self._steps_left == 0 else nullcontext():
                self._profile.step()

    def close(self) -> None:
        """Call once after the last step; a trace that was not complete yet is written as it is."""
        if self._profile:
            self._profile.stop()
            self._profile = None
