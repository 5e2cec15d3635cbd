"""Where rank 0 can be killed while it ships a run to its object store, in a thread of its own.

Training waits with its next save until the shipment of the one before is over, so that each shipment has the
same objects in every run of a point; steps go on meanwhile, as they do without.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from pipeline.data.store.objects import ObjectStore
from pipeline.launch.run_context import JournaledContext
from pipeline.launch.shipment import Shipment
from pipeline.launch.shipper import Shipper
from pipeline.train.checkpoint import COMMIT
from pipeline.train.context import SavePoint
from tests.chaos.kill import Kill
from tests.chaos.seams_of_saves import FILES

SHIP_WAIT_S = 60
PLACES = {
    "upload_journal": 2,
    "upload_files": 2 * FILES,
    "upload_commit": 2,
    "upload_removal": 2 * (1 + FILES),
}
"""Before and after each object of a phase: the journal's new lines, the files, COMMIT; COMMIT and files."""


class UploadSeams:
    """The seams of one process."""

    def __init__(self, kill: Kill) -> None:
        self.kill = kill
        self.saved = 0
        """Step of the save that is shipped."""

    def install(self) -> None:
        """Wrap the shipped methods."""
        self._shipments()
        for operation in ("put", "create", "remove"):
            setattr(ObjectStore, operation, self._struck(operation, getattr(ObjectStore, operation)))

    def _shipments(self) -> None:
        kill, mark, ship, wake = self.kill, JournaledContext.mark, Shipment.ship, Shipper.wake
        shipped = threading.Semaphore(0)

        def saved(context: JournaledContext, point: SavePoint, step: int) -> None:
            if point == "saved":
                self.saved = step
            mark(context, point, step)

        def waking(shipper: Shipper) -> None:
            wake(shipper)
            shipped.acquire(timeout=SHIP_WAIT_S)

        def struck(shipment: Shipment) -> None:
            for phase, places in PLACES.items():
                if kill.wants(phase, self.saved):
                    kill.count_down(places)
            try:
                ship(shipment)
            finally:
                shipped.release()

        JournaledContext.mark, Shipper.wake, Shipment.ship = saved, waking, struck

    def _struck(self, operation: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def struck(store: ObjectStore, name: str, *rest: Any) -> Any:
            phase, what = phase_of(operation, name), f"{operation} of {name.rpartition('/')[2]}"
            self.kill.place(phase, f"before {what}")
            answer = real(store, name, *rest)
            self.kill.place(phase, f"past {what}")
            return answer

        return struck


def phase_of(operation: str, name: str) -> str:
    """The phase in which an object is written or removed; "" for those that no phase has."""
    folder, _, file = name.partition("/")
    if operation == "remove":
        return "upload_removal"
    if folder == "journal":
        return "upload_journal"
    if folder != "checkpoints":
        return ""
    return "upload_commit" if file.endswith(COMMIT) else "upload_files"
