"""Ranks that are forked from one process which has imported what they need: torch alone takes a second each.

A rank is a process like any other: it has its own environment, as torchrun would set it, output of its own,
runs a program as `__main__`, and ends with its interpreter.
"""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 240


@dataclass(frozen=True)
class Ended:
    """How a rank ended."""

    code: int
    """Its exit code, or minus the signal that killed it."""
    out: str
    err: str


def run_ranks(size: int, program: Sequence[object]) -> list[Ended]:
    """How each of `size` ranks of a program ended: -m MODULE, -c CODE or PATH, and its words.

    Whatever lives after TIMEOUT_S is killed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    # Output and errors of each rank. Not files, which a program may have bounded the size of.
    pipes = [os.pipe() for _ in range(2 * size)]
    ends = [write for _, write in pipes]
    command = [sys.executable, "-m", "tests.forked_ranks", ",".join(map(str, ends)), *map(str, program)]
    process = subprocess.Popen(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, pass_fds=ends,
        start_new_session=True,
    )  # fmt: skip
    for end in ends:
        os.close(end)
    with process, ThreadPoolExecutor(len(pipes)) as readers:
        said = [readers.submit(_read_all, read) for read, _ in pipes]
        try:
            told, _ = process.communicate(timeout=TIMEOUT_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        texts = [text.result() for text in said]
    codes = [int(code) for code in told.split()]
    assert len(codes) == size, texts
    return [Ended(code, *texts[2 * rank : 2 * rank + 2]) for rank, code in enumerate(codes)]


def _read_all(end: int) -> str:
    with os.fdopen(end) as file:
        return file.read()


def _become_rank(rank: int, ends: Sequence[int], program: Sequence[str]) -> None:
    """Run the program as this fork's own."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.dup2(ends[2 * rank], 1)
    os.dup2(ends[2 * rank + 1], 2)
    for end in ends:
        os.close(end)
    first, *words = program
    if first == "-c":
        sys.argv = ["-c", *words[1:]]
        exec(compile(words[0], "<rank>", "exec"), {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [first, *words]
        runpy.run_path(first, run_name="__main__")


def main() -> None:
    """Fork the ranks, and tell how each of them ended."""
    # All that a rank imports, and what torch's optimizers import when they are made.
    import torch._dynamo  # noqa: F401

    import pipeline.launch.extension
    import pipeline.launch.preflight
    import pipeline.launch.remote_run
    import pipeline.train.loop  # noqa: F401

    numbers, *program = sys.argv[1:]
    ends, ranks = [int(number) for number in numbers.split(",")], []
    for rank in range(int(os.environ["WORLD_SIZE"])):
        ranks.append(os.fork())
        if ranks[-1] == 0:
            _become_rank(rank, ends, program)
            return  # and end, as any program does
    for end in ends:
        os.close(end)
    print(*[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks])


if __name__ == "__main__":
    main()
