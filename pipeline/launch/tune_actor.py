"""A trial as Ray Tune has it: a process that trains, tells of each score, and ends by itself.

The process holds no CPU, since the ranks of the nested Ray Train run do; it is used again for the next trial.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from ray import tune

from pipeline.errors import Preempted, WorldStateError, one_line
from pipeline.launch.spares import Spares
from pipeline.launch.tune_folder import scores
from pipeline.launch.tune_trial import TrialStop, TrialTask, task_from_text, train_trial
from pipeline.tracking.journal import read_journal
from pipeline.train.metrics import VAL_MIOU

TASK = "task"
NUMBER = "number"
STEP = "step"
HALT = "halt"
"""Why the whole search cannot go on: no room, a full disk, which are not the doing of a trial's settings."""
PREEMPTED = "preempted"
"""Whether that is such that the same command goes on later."""
POLL_S = 0.3
READING_SHARE = 20
"""A journal is read again after so many times what reading it took: below a twentieth of a core."""
END_WAIT_S = 60.0
"""Longest that a trial whose process is to end is waited for: its ranks checkpoint and leave."""


class TrialActor(tune.Trainable):
    """One trial at a time, each in a thread."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin with a trial."""
        self._begin(config, spares=None)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin with another trial, in the same process; the one before is over."""
        self.cleanup()
        self._begin(new_config, self._spares)
        return True

    def _begin(self, config: dict[str, Any], spares: Spares | None) -> None:
        task = task_from_text(config[TASK])
        # What a trial leaves in reserve is what the next one begins with.
        self._spares = spares or (Spares() if task.config.launch.spares else None)
        self._training = _Training(task, self._spares)

    def step(self) -> dict[str, Any]:
        """Waits for the next score or the end; a failure that is not the settings' doing is raised."""
        return self._training.news()

    def cleanup(self) -> None:
        """End the trial, if it did not end, after a checkpoint."""
        self._training.end()


class _Training:
    """A trial in a thread, and what was told of it."""

    def __init__(self, task: TrialTask, spares: Spares | None) -> None:
        self._task, self._stop, self._spares = task, TrialStop(task), spares
        self._told = -1
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="trial", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            train_trial(self._task, self._stop, self._spares)
        except Exception as error:  # noqa: BLE001 - raised again by `news` in Tune's thread
            self._error = error

    def news(self) -> dict[str, Any]:
        pause_s = POLL_S
        while True:
            over = not self._thread.is_alive()  # asked first: all of an ended trial is there to be read
            began_s = time.thread_time()
            points = scores(read_journal(self._task.run_dir), VAL_MIOU)
            pause_s = max(POLL_S, READING_SHARE * (time.thread_time() - began_s))
            step = points[-1].step if points else 0
            if over or step > self._told:
                self._told = step
                return self._answer(step, over=over)
            self._thread.join(pause_s)

    def _answer(self, step: int, *, over: bool) -> dict[str, Any]:
        halted = isinstance(self._error, Preempted | WorldStateError)
        if self._error and not halted:
            raise self._error
        return {
            NUMBER: self._task.number,
            STEP: step,
            "done": over,
            HALT: one_line(self._error) if self._error else "",
            PREEMPTED: isinstance(self._error, Preempted),
        }

    def end(self) -> None:
        self._stop.ask()
        self._thread.join(END_WAIT_S)
