"""A loader worker as the process that trains sees it: a child with a socket, which never blocks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pipeline
from pipeline.data.decode import MAX_PIXELS
from pipeline.data.signal_mask import held_back
from pipeline.errors import WorldStateError

_RECEIVE_BYTES = 2**16
_LAST_WORDS_BYTES = 4000
_GRACE_S = 5.0
"""How long a killed process may take to be gone. One that sleeps in the kernel may take longer, and will
not run another line of its own; so there is nothing more to wait for."""


class Ending(NamedTuple):
    """How a process ended."""

    status: int | None
    """As subprocess has it: negative for a signal; None for one that hangs in the kernel."""
    last_words: str
    """The end of what it wrote to its error stream."""

    def __str__(self) -> str:
        if self.status is None:
            return "hangs in the kernel"
        if self.status < 0:
            how = f"was ended by {signal.Signals(-self.status).name}"
        else:
            how = f"ended with status {self.status}"
        last_line = self.last_words.rpartition("\n")[2][:300]
        return f"{how} ({last_line})" if last_line else how


class WorkerProcess:
    """Started at once; `send` and `receive` return at once, `end` when the process is gone.

    Nothing is forked: the child is a new interpreter, which knows nothing of this process's threads,
    its main module or its devices.
    """

    def __init__(self, setup: bytes, memory: int) -> None:
        self._outgoing, self._incoming = bytearray(), bytearray()
        self.socket, theirs = socket.socketpair()
        self.socket.setblocking(False)
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `end`
        self._last_words = ""
        # -P: a folder that happens to hold a numpy.py must not become part of the path.
        command = [sys.executable, "-P", "-X", "faulthandler", "-m", "pipeline.data.worker"]
        try:
            with held_back(signal.SIGINT, signal.SIGTERM):
                self._process = subprocess.Popen(  # noqa: S603 - this interpreter and a module of its own
                    [*command, str(theirs.fileno()), str(memory)],
                    stdin=subprocess.DEVNULL, stdout=self._words, stderr=self._words,
                    pass_fds=(theirs.fileno(), memory), env=_environment(),
                )  # fmt: skip
        except OSError as error:
            self.socket.close()
            self._words.close()
            raise WorldStateError(
                f"cannot start a loader worker: {error.strerror}; make room for processes, or type "
                "--data.loader_workers 0"
            ) from error
        finally:
            theirs.close()
        self.send(setup)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_blocked(self) -> bool:
        """True while something waits to be sent."""
        return bool(self._outgoing)

    def send(self, data: bytes) -> None:
        """Send it, now or as soon as the socket takes it: see `flush`."""
        self._outgoing += data
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes of what waits. That the worker is gone is for `receive` to find."""
        try:
            while self._outgoing:
                del self._outgoing[: self.socket.send(self._outgoing)]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self._outgoing.clear()

    def receive(self) -> tuple[list[Any], bool]:
        """Messages that have come, and whether the worker lives."""
        lives = True
        try:
            while data := self.socket.recv(_RECEIVE_BYTES):
                self._incoming += data
            lives = False
        except BlockingIOError:
            pass
        except ConnectionResetError:
            lives = False
        *lines, rest = self._incoming.split(b"\n")
        self._incoming = bytearray(rest)
        return [json.loads(line) for line in lines], lives

    def hang_up(self) -> None:
        """Let it end by itself: it does as soon as its socket is closed."""
        self.socket.close()

    def end(self, grace_s: float) -> Ending:
        """How it ended: by itself within `grace_s`, or by SIGKILL. It writes to no slot any more."""
        self.hang_up()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
        if not self._words.closed:
            with self._words:
                self._last_words = _tail(self._words)
        return Ending(self._process.returncode, self._last_words)


def _tail(words: BinaryIO) -> str:
    words.seek(max(0, words.seek(0, os.SEEK_END) - _LAST_WORDS_BYTES))
    return words.read().decode(errors="replace").strip()


def _environment() -> dict[str, str]:
    """The environment of this process, so changed that the package is found and a worker is one core."""
    package_folder = str(Path(pipeline.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package_folder, os.environ.get("PYTHONPATH", "")]))
    return os.environ | {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "OPENCV_IO_MAX_IMAGE_PIXELS": str(MAX_PIXELS),
    }
