"""A rank that is told to go, by SIGTERM to its process: a wish to stop.

Ray ends a worker at SIGTERM, and every step since the newest checkpoint with it. Here it is a wish
that rides on the next step's reduction, so that all ranks checkpoint at the end of a step.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

_told = threading.Event()


def told_to_go() -> bool:
    """True once this rank's process heard SIGTERM."""
    return _told.is_set()


def hear_sigterm() -> None:
    """Take the first SIGTERM as a wish and the second as Ray does; must run in the main thread.

    Python runs handlers there alone, which Ray's questions after the worker keep awake.
    """
    signal.signal(signal.SIGTERM, _hear)


def _hear(number: int, frame: FrameType | None) -> None:
    if _told.is_set():
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    _told.set()


class _HearingBackend(_TorchBackend):
    """Ray's set-up of the process group, which runs in the main thread of each worker, and the handler."""

    def on_start(self, worker_group, backend_config) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        worker_group.execute(hear_sigterm)
        super().on_start(worker_group, backend_config)


class HearingTorchConfig(TorchConfig):
    """Ray's TorchConfig for workers that hear SIGTERM."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """The backend that installs the handler."""
        return _HearingBackend
