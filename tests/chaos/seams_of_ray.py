"""Where a rank kills a process of Ray that it depends on: its controller, or the driver of the job.

The rank goes on, at a slower pace: what it does until Ray ends it must not count twice, nor be lost.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil

from pipeline.train.step import StepRunner
from tests.chaos.kill import Kill

CONTROLLER = "TrainController"
"""In the title of the process of Ray Train's controller."""
DRIVER_PID = "driver.pid"
PACE_S = 0.25
"""Of a step after the kill: Ray takes a moment to notice."""


class RaySeams:
    """The seams of one process."""

    def __init__(self, kill: Kill, folder: Path) -> None:
        self.kill, self.folder = kill, folder
        self.struck = False

    def install(self) -> None:
        """Wrap the shipped methods."""
        step = StepRunner.step

        def striking(runner: StepRunner, micro_batches: Any, denominators: Any, number: int) -> None:
            if self.struck:
                time.sleep(PACE_S)
            for phase, victim in (("controller", self._controller), ("driver", self._driver)):
                if not self.struck and self.kill.wants(phase, number):
                    self.kill.hit_other(f"the {phase}, before step {number}", victim())
                    self.struck = True
            step(runner, micro_batches, denominators, number)

        StepRunner.step = striking

    def _driver(self) -> int:
        return int((self.folder / DRIVER_PID).read_text())

    def _controller(self) -> int:
        """The controller of this rank: the one of the job's that is alive."""
        raylet = psutil.Process().parent()
        assert raylet is not None
        found = [child for child in raylet.children() if CONTROLLER in " ".join(child.cmdline())]
        return max(found, key=lambda process: process.create_time()).pid
