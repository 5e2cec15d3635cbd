"""Attempts under torchrun's own agent, each in real processes that are forked and not started anew.

A line of JSON a command, a line an answer. An attempt is the agent that `torchrun` is a command line of
(torch.distributed.launcher), in a process group of its own, with its ranks; each rank runs the shipped
`pipeline.launch.torchrun`. Importing torch takes longer than such an attempt, so all of them are forked
from this process, which has.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

import torch  # noqa: F401 - what this process is for
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.launch import torchrun
from tests.chaos.rank import Orders, prepare


def rank(orders: dict[str, Any], argv: list[str]) -> None:
    """A rank; the agent has set the environment."""
    prepare(Orders.from_dict(orders))
    code = torchrun.main(argv)
    sys.stdout.flush()
    if code:
        sys.exit(code)


def agent(command: dict[str, Any]) -> int:
    """torchrun, without its command line."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=command["world"], run_id=str(os.getpid()),
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0, monitor_interval=0.05,
        start_method="fork",
    )  # fmt: skip
    try:
        elastic_launch(config, rank)(command["orders"], command["argv"])
    except ChildFailedError as error:
        print(f"torchrun: {error}", file=sys.stderr)
        return 1
    return 0


def run_apart(command: dict[str, Any]) -> int:
    """The agent in a group of processes of its own; its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            log = os.open(command["log"], os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = agent(command)
        except BaseException:  # noqa: BLE001 - a fork must not return
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps({"exit": run_apart(json.loads(line))}), file=answers, flush=True)


if __name__ == "__main__":
    main()
