"""Real processes that each run one attempt of a run, and are killed or stopped at a named point of it.

Reads one JSON command a line and answers each with one line. It forks for every attempt, since
importing torch takes longer than such an attempt. `{"run": CASE}` answers when the process has ended or
stopped, `{"go_on": PID}` lets a stopped one go on and answers when it has ended. `"beside": true` with a
run answers at once, and `{"wait": PID}` when that one has ended. CASE has run_dir, shards,
settings, and, where something is to happen, at ([point, step]) and signal.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
import torch._dynamo  # what an optimizer imports when it is made, for a second of CPU

from pipeline.errors import PipelineError
from pipeline.launch.fence import begin_attempt
from pipeline.launch.run_context import JournaledContext
from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.train import checkpoint_folder
from pipeline.train.checkpoint import list_committed, step_of
from pipeline.train.loop import fit
from pipeline.world import World


class Struck(JournaledContext):
    """The surroundings of a rank that something happens to at a point."""

    def __init__(self, case: dict) -> None:
        run_dir = Path(case["run_dir"])
        super().__init__(run_dir, World(), begin_attempt(run_dir))
        self.case, self.run_dir, self.steps = case, run_dir, 0

    def strike(self, point: str, step: int) -> None:
        if [point, step] == self.case.get("at"):
            # To this thread: any other could take a signal of the process, while this one goes on.
            signal.pthread_kill(threading.get_ident(), self.case["signal"])

    def mark(self, point, step):
        self.strike(point, step)
        super().mark(point, step)
        self.strike(f"{point}, checked", step)

    def metrics(self, step, values):
        self.steps = step
        super().metrics(step, values)
        if "val/miou" in values:
            self.strike("evaluation recorded", step)
            if ["evaluation recorded, weights committed", step] == self.case.get("at"):
                while not any(step_of(folder) == step for folder in list_committed(self.run_dir)):
                    time.sleep(0.01)
                self.strike(*self.case["at"])

    @contextmanager
    def phase(self, name):
        with super().phase(name):
            self.strike(name, self.steps)
            yield


def attempt(case: dict) -> int:
    torch.set_num_threads(1)
    config = with_settings(recipe("laptop"), case["settings"] | {"launch.use_gpu": "no"})
    context = Struck(case)
    rename = Path.rename

    def renamed(path, target):
        if Path(target).name == checkpoint_folder.COMMIT:
            context.strike("rename", int(path.parent.name[5:13]))
        return rename(path, target)

    Path.rename = renamed
    try:
        fit(config, case["shards"], Path(case["run_dir"]), context)
    except PipelineError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    finally:
        context.close()
    return 0


def outcome(pid: int) -> dict:
    _, status = os.waitpid(pid, os.WUNTRACED)
    return {
        "pid": pid,
        "stopped": os.WIFSTOPPED(status),
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "exit": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
    }


def serve(attempt: Callable[[dict], int]) -> None:
    """Do what standard input says until it ends."""
    for line in sys.stdin:
        command = json.loads(line)
        if "go_on" in command:
            pid = command["go_on"]
            os.kill(pid, signal.SIGCONT)
        elif "wait" in command:
            pid = command["wait"]
        else:
            pid = os.fork()
            if pid == 0:
                try:
                    code = attempt(command["run"])
                except BaseException:  # noqa: BLE001 - told, and the process ends
                    traceback.print_exc()
                    code = 1
                sys.stderr.flush()
                os._exit(code)
            if command.get("beside"):
                print(json.dumps({"pid": pid}), flush=True)
                continue
        print(json.dumps(outcome(pid)), flush=True)


if __name__ == "__main__":
    serve(attempt)
