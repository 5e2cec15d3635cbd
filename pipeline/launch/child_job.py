"""A job run as a child process: its lines shown as they come, and never outliving its parent."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import IO

from pipeline.launch.job import Result, read_result

POLL_S = 0.2
"""Longest until a wish to stop reaches the child, which may be silent for minutes."""
END_WAIT_S = 5.0
"""Longest that a child which was asked to end is waited for before it is killed."""


def run_child(
    command: Sequence[str], show: Callable[[str], None], stop_wanted: Callable[[], bool]
) -> tuple[int, Result | None]:
    """Exit code and RESULT of a job; its other lines go to `show`.

    Once `stop_wanted`, the child is terminated at once. Whatever is raised here, such as the
    KeyboardInterrupt of a second signal, the child has ended before it goes on.
    """
    found: list[Result] = []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own
    assert process.stdout is not None
    reader = threading.Thread(target=_read, args=(process.stdout, show, found), daemon=True)
    reader.start()
    try:
        while True:
            try:
                process.wait(POLL_S)
                break
            except subprocess.TimeoutExpired:
                if stop_wanted():
                    break
    finally:
        _end(process)
        reader.join(END_WAIT_S)  # bounded: a process that the child left could keep the pipe open
    return process.returncode, found[-1] if found else None


def _read(lines: IO[str], show: Callable[[str], None], found: list[Result]) -> None:
    with lines:
        for line in lines:
            result = read_result([line])
            if result is not None:
                found.append(result)
            else:
                show(line.rstrip("\n"))


def _end(process: subprocess.Popen[str]) -> None:
    """End the child if it still runs, politely and then not."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(END_WAIT_S)
    except subprocess.TimeoutExpired:
        pass  # deaf: killed below
    finally:  # a second signal raises KeyboardInterrupt in the wait
        if process.poll() is None:
            process.kill()
        process.wait()
