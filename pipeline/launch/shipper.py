"""Ships a run to its store behind training's back: nobody waits for it until the very end.

A store that goes away costs a line in the log, and nothing else: what is recorded stays in the working
copy and is shipped when the store is back. A later attempt, on whatever machine, is noted in the copy's
own fence, where every rank and the driver find it.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from pipeline.errors import PipelineError, one_line
from pipeline.launch.fence import SupersededError, note_newer, token_of
from pipeline.launch.shipment import Shipment

logger = logging.getLogger(__name__)

AGAIN_S = 5.0
"""Pause before a shipment that failed is tried again."""


class Shipper:
    """A thread that ships whenever it is woken; at most one shipment is under way."""

    def __init__(self, shipment: Shipment, run_dir: Path, attempt: str) -> None:
        self._shipment, self._run_dir, self._attempt = shipment, run_dir, attempt
        self._due, self._closing = threading.Event(), False
        self._failed = False
        self._bug: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="shipper", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Ship what is there, soon."""
        self._due.set()

    def close(self) -> None:
        """End when what is under way has been shipped, or has failed; the rest is for whoever comes after."""
        self._closing = True
        self._due.set()
        self._thread.join()
        if self._bug is not None:
            raise self._bug

    def _run(self) -> None:
        while self._is_due():
            try:
                self._shipment.ship()
            except SupersededError as error:
                logger.warning("[event] %s", error)
                note_newer(self._run_dir, max(error.newest, token_of(self._attempt) + 1))
                return
            except (PipelineError, OSError) as error:
                self._say_away(error)
            except BaseException as error:  # noqa: BLE001 - raised by `close`, in the thread that trains
                self._bug = error
                return
            else:
                if self._failed:
                    logger.info("[event] the store is back, and has what was recorded meanwhile")
                self._failed = False

    def _is_due(self) -> bool:
        """True when there is something to ship, also once more after a failure; False to end."""
        self._due.wait(AGAIN_S if self._failed else None)
        self._due.clear()
        return not self._closing

    def _say_away(self, error: Exception) -> None:
        if not self._failed:
            logger.warning(
                "[event] not shipped (%s): training goes on, and what is recorded is shipped later",
                one_line(error, 300),
            )
        self._failed = True
