"""Machines that work on one run at an address, all in this process: each step is taken by hand.

Between two requests of one machine another may do whatever it likes, so that a process which is frozen
there, and wakes up, is a matter of a hook and not of luck. The server behind them is a real one.
"""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.data.store.objects import ObjectStore
from pipeline.errors import PipelineError
from pipeline.launch import remote_lease
from pipeline.launch.remote_checkpoints import committed
from pipeline.launch.remote_run import RemoteRun, lock_file
from pipeline.launch.shipment import Shipment
from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.train.checkpoint import COMMIT, FORMAT, NEEDED, SCORE, WEIGHTS, list_committed
from pipeline.train.signed_json import signed

CONFIG = with_settings(recipe("laptop"), {"data.store.attempts": 2})
OPERATIONS = ("names", "read", "create", "replace", "put", "fetch", "remove")
WAIT_S = 60.0


class Machine:
    """The job of a run on one machine, whose working copy is `run_dir`."""

    def __init__(self, address: str, run_dir: Path) -> None:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        lock_file(run_dir).touch()
        self.run_dir = run_dir
        self.run = RemoteRun(address, run_dir, CONFIG)
        self.attempt = ""

    @property
    def store(self) -> ObjectStore:
        return self.run.store

    @property
    def lease(self) -> remote_lease.RemoteLease:
        return self.run._lease

    def begin(self) -> "Machine":
        """Take the run, and begin an attempt."""
        self.run.acquire()
        self.attempt = self.run.begin_attempt()
        return self

    def end(self) -> None:
        """Ship the rest, and let the run go."""
        assert self.run.finish(0.0) == ""
        self.run.release()

    def record(self, line: str, journal: str = "0001") -> Path:
        """A line in a journal of the attempt."""
        path = self.run_dir / "journal" / f"{journal}-{self.attempt}.jsonl"
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as file:
            file.write(f"{line}\n")
        return path

    def commit(self, step: int) -> Path:
        """A checkpoint on this disk."""
        folder = self.run_dir / "checkpoints" / f"step_{step:08d}-{self.attempt}"
        folder.mkdir(parents=True)
        contents = {name: f"{name} of {folder.name}".encode() for name in NEEDED}
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        files = {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()
        }
        (folder / COMMIT).write_bytes(signed({"format": FORMAT, "files": files}))
        return folder

    def score(self, folder: Path, miou: float) -> bytes:
        """Give a checkpoint a score, and return the file's content."""
        weights = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        content = signed({"miou": miou, "pixel_accuracy": 0.5, "weights": weights})
        (folder / SCORE).write_bytes(content)
        return content

    def ship(self) -> None:
        self.run.shipment().ship()

    def journals(self) -> dict[str, bytes]:
        """What this copy has of the run's journals."""
        return {path.name: path.read_bytes() for path in (self.run_dir / "journal").glob("*.jsonl")}

    def config(self) -> bytes | None:
        path = self.run_dir / "config.json"
        return path.read_bytes() if path.exists() else None

    def checkpoints(self) -> set[str]:
        return {folder.name for folder in list_committed(self.run_dir)}

    def checkpoints_there(self) -> set[str]:
        return set(committed(self.store.names("checkpoints/")))

    def before(self, hook: Callable[[str, str], None]) -> None:
        """Call `hook(operation, name)` before each of this machine's requests from now on."""
        for operation in OPERATIONS:
            setattr(self.store, operation, _hooked(operation, getattr(self.store, operation), hook))


def _hooked(operation: str, real: Callable[..., Any], hook: Callable[[str, str], None]) -> Callable[..., Any]:
    def hooked(name: str, *rest: Any) -> Any:
        hook(operation, name)
        return real(name, *rest)

    return hooked


class Frozen:
    """A shipment of a machine that stands still right before a request, until `wake`."""

    def __init__(self, machine: Machine, operation: str, part: str) -> None:
        self.error: PipelineError | None = None
        self._shipment: Shipment = machine.run.shipment()
        self._wanted = operation, part
        self._stands, self._go = threading.Event(), threading.Event()
        machine.before(self._stand)
        self._thread = threading.Thread(target=self._ship, daemon=True)
        self._thread.start()
        assert self._stands.wait(WAIT_S), f"no {operation} of {part}"

    def wake(self) -> None:
        """Let it go on to its end."""
        self._go.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()

    def _stand(self, operation: str, name: str) -> None:
        if operation == self._wanted[0] and self._wanted[1] in name and not self._stands.is_set():
            self._stands.set()
            assert self._go.wait(WAIT_S)

    def _ship(self) -> None:
        try:
            self._shipment.ship()
        except PipelineError as error:
            self.error = error
