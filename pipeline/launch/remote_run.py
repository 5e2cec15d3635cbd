"""A run kept at an address: a working copy on this machine, and the object store that outlives the machine.

Everything works in the copy, as in a folder of runs. The store has the truth: who may write (a lease), which
attempt is the newest (a fence), and what was committed. A copy that no other machine went on from is kept
as it is, and what it has beyond the store is shipped; any other is made anew from the store.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pipeline.config import Config
from pipeline.data.store import open_objects
from pipeline.data.store.cache import locked
from pipeline.errors import PipelineError, WorldStateError, one_line
from pipeline.launch.fence import SupersededError, begin_attempt, note_newer
from pipeline.launch.remote_checkpoints import FOLDER, entomb_unfinished, restore
from pipeline.launch.remote_fence import newest_attempt, take_number
from pipeline.launch.remote_lease import NAME as LEASE
from pipeline.launch.remote_lease import RemoteLease
from pipeline.launch.shipment import Shipment
from pipeline.launch.shipper import Shipper
from pipeline.tracking.segments import is_segment, seals, segments_of

logger = logging.getLogger(__name__)

COPY = "copy"
"""File of a working copy with its own name; written when the copy is whole."""
FINISH_WAIT_S = 60.0
"""Longest time that a job's end waits for a store that is away."""


class RemoteRun:
    """A run at an address while this process holds it; made by `held_run`."""

    def __init__(self, address: str, run_dir: Path, config: Config) -> None:
        self.address, self.run_dir = address.rstrip("/"), run_dir
        self.store = open_objects(self.address, config.data.store)
        self._keep_last = config.train.keep_last
        self._token = 0
        self._attempt = ""
        known = run_dir / COPY
        self._copy = known.read_text() if known.exists() else secrets.token_hex(8)
        self._lease = RemoteLease(self.store, self._copy, self._lost)

    def begin_attempt(self, job: str = "") -> str:
        """The name of a new attempt, whose copy has the newest whole checkpoints of the store.

        Raises WorldStateError for a store that is out of reach, or a disk that refuses.
        """
        self._token = take_number(self.store, self._copy)
        self._attempt = begin_attempt(self.run_dir, job, self._token)
        try:
            # Only now: what an earlier attempt commits from here on finds its name taken.
            entomb_unfinished(self.store, self.run_dir, self.store.names(f"{FOLDER}/"))
            restore(self.store, self.run_dir, self._keep_last)
        except OSError as error:
            raise WorldStateError(
                f"checkpoints of {self.address} cannot be kept in {self.run_dir}: {error.strerror}; make "
                "room, or type --data.store.cache_dir and a folder on a larger disk"
            ) from error
        return self._attempt

    def shipment(self) -> Shipment:
        """What ships the attempt that began last."""
        return Shipment(self.store, self.run_dir, self._attempt or f"{self._token:04d}-0", self._keep_last)

    @contextmanager
    def shipping(self) -> Iterator[Callable[[], None]]:
        """What wakes a thread of this process that ships, for as long as the context is open."""
        with _shipping(self.shipment(), self.run_dir, self._attempt) as wake:
            yield wake

    def acquire(self) -> None:
        """Take the lease, and make the copy what the store has; raises WorldStateError where it is held."""
        self._lease.acquire()
        newest = newest_attempt(self.store)
        self._token = newest.token
        if newest.token and newest.copy == self._copy:
            return
        try:
            self._make_anew()
        except OSError as error:
            raise WorldStateError(
                f"a working copy of {self.address} cannot be kept in {self.run_dir}: {error.strerror}; make "
                "room, or type --data.store.cache_dir and another folder"
            ) from error

    def release(self) -> None:
        """Let the run go."""
        began = self._token > 0
        self._lease.release(began=began)
        self.store.close()

    def finish(self, wait_s: float | None = None) -> str:
        """Ship the rest; what the store still lacks after the wait, and what ships it, else ""."""
        if not self._token:
            return ""
        wait_s = FINISH_WAIT_S if wait_s is None else wait_s
        shipment, end_s = self.shipment(), time.monotonic() + wait_s
        while True:
            try:
                shipment.ship()
                return ""
            except SupersededError:
                raise
            except (PipelineError, OSError) as error:
                if time.monotonic() >= end_s:
                    return (
                        f"{self.address} lacks {shipment.outstanding()} objects of this run "
                        f"({one_line(error, 200)}); type the same command with --name {self.run_dir.name} on "
                        "this machine to ship them"
                    )
                time.sleep(min(1.0, wait_s))

    def _make_anew(self) -> None:
        """Make the copy from the store's records; checkpoints come when an attempt begins."""
        if (self.run_dir / COPY).exists():
            logger.info("[event] the run went on elsewhere: its copy on this machine is made anew")
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self.run_dir.mkdir(parents=True)
        for name in seals(self.store.names("journal/")):
            self.store.create(name, b"")
        names = self.store.names("")
        for file, segments in segments_of(names).items():
            lines = [there.data for name in segments if (there := self.store.read(name))]
            (self.run_dir / file).parent.mkdir(exist_ok=True)
            (self.run_dir / file).write_bytes(b"".join(lines))
        for name in names:
            if name != LEASE and not is_segment(name) and not name.startswith((f"{FOLDER}/", "attempts/")):
                self.store.fetch(name, self.run_dir / name)
        (self.run_dir / COPY).write_text(self._copy)

    def _lost(self) -> None:
        logger.warning("[event] the lease of %s was taken over: this job stops", self.address)
        note_newer(self.run_dir, self._token + 1)


@contextmanager
def shipped_to(address: str, run_dir: Path, attempt: str, config: Config) -> Iterator[Callable[[], None]]:
    """As `RemoteRun.shipping`, in a process that does not hold the run; "" ships nothing."""
    if not address:
        yield lambda: None
        return
    with closing(open_objects(address, config.data.store)) as store:
        shipment = Shipment(store, run_dir, attempt, config.train.keep_last)
        with _shipping(shipment, run_dir, attempt) as wake:
            yield wake


@contextmanager
def _shipping(shipment: Shipment, run_dir: Path, attempt: str) -> Iterator[Callable[[], None]]:
    shipper = Shipper(shipment, run_dir, attempt)
    try:
        yield shipper.wake
    finally:
        shipper.close()


def shown(remote: RemoteRun | None, path: Path) -> str:
    """Where a file of a run is, for whoever reads of it, on whatever machine."""
    return f"{remote.address}/{path.relative_to(remote.run_dir).as_posix()}" if remote else str(path)


@contextmanager
def held_run(runs: str, run_dir: Path, config: Config) -> Iterator[RemoteRun]:
    """The run of that folder's name at `runs`, held by this process while open; shipped at the end.

    Raises WorldStateError where a live job holds it, on this machine or another, where the store is out of
    reach, and at the end where it lacks something of a training that went well.
    """
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with locked(run_dir.with_name(f"{run_dir.name}.lock"), wait=False) as mine:
        if not mine:
            raise WorldStateError(
                f"run {run_dir.name} is held by a live job on this machine; wait for it, stop it, or choose "
                "another --name"
            )
        run = RemoteRun(f"{runs.rstrip('/')}/{run_dir.name}", run_dir, config)
        try:
            run.acquire()
            try:
                yield run
            except SupersededError:
                raise
            except BaseException:
                if lacking := run.finish():
                    logger.warning("[event] %s", lacking)
                raise
            if lacking := run.finish():
                raise WorldStateError(lacking)
        finally:
            run.release()
