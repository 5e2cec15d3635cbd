"""Attempts under torchrun's own agent, each in real processes that are forked and not started anew.

A line of JSON a command, a line an answer (`Ending`). An attempt is the agent that `torchrun` is a command
line of (torch.distributed.launcher), in a process group of its own, with its ranks; each rank runs the
shipped `pipeline.launch.torchrun`. Importing torch takes longer than such an attempt, so all of them are
forked from this process, which has. None outlives its time, and none leaves a process behind: what is left
of its group is told, and killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from typing import Any

import psutil
import torch._dynamo  # noqa: F401 - with torch, what this process is for: rank 0 needs it, for 1 s of CPU
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline.launch import torchrun
from tests.chaos.rank import Orders, prepare

POLL_S = 0.02
LEFT_S = 10.0
"""For processes of a group whose leader has ended: loader workers end as soon as nobody listens."""


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


def run_apart(command: dict[str, Any]) -> dict[str, Any]:
    """The Ending of the agent in a group of processes of its own."""
    told, tell = os.pipe()
    os.set_blocking(told, False)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            log = os.open(command["log"], os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            ranks = note_endings()
            code = agent(command)
            os.write(tell, json.dumps(ranks).encode())
        except BaseException:  # noqa: BLE001 - a fork must not return
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(tell)
    status, stuck = wait(pid, command["timeout_s"])
    left = end_group(pid)
    with os.fdopen(told, "rb") as pipe:
        ranks = json.loads(pipe.read() or b"{}")
    return {"code": os.waitstatus_to_exitcode(status), "ranks": ranks, "stuck": stuck, "left": left}


def note_endings() -> dict[int, int]:
    """Process → exit code, or minus the signal, of all that this process waits for from now on."""
    waitpid, endings = os.waitpid, dict[int, int]()

    def noting(pid: int, options: int) -> tuple[int, int]:
        found, status = waitpid(pid, options)
        if found:
            endings[found] = os.waitstatus_to_exitcode(status)
        return found, status

    os.waitpid = noting
    return endings


def wait(pid: int, timeout_s: float) -> tuple[int, bool]:
    """How the leader of a group ended, and whether the whole group had to be killed as its time was over."""
    end_s, stuck = time.monotonic() + timeout_s, False
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status, stuck
        if not stuck and time.monotonic() > end_s:
            with suppress(ProcessLookupError):  # it is no group yet
                os.killpg(pid, signal.SIGKILL)
                stuck = True
        time.sleep(POLL_S)


def end_group(group: int) -> list[str]:
    """Kill what is left of a group whose leader has ended; its titles, but for what ends by itself."""
    end_s = time.monotonic() + LEFT_S
    while left := living(group):
        if time.monotonic() > end_s:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
            return left
        time.sleep(POLL_S)
    return []


def living(group: int) -> list[str]:
    """Titles of a group's processes, zombies left out, which nobody may be there to wait for."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return []
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


def prepare_for_store() -> None:
    """Read botocore's description of S3 once, before the forks; a lease is watched for a second, not 16."""
    from pipeline.data.store.s3 import s3_client
    from pipeline.launch import remote_lease

    s3_client(1.0)
    remote_lease.RENEW_S = 0.25


def main() -> None:
    """Serve until standard input ends."""
    if "AWS_ENDPOINT_URL" in os.environ:
        prepare_for_store()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(run_apart(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
