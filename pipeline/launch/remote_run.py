"""A run kept at an address: a working copy on this machine, and the object store that outlives the machine.

Everything works in the copy, as in a folder of runs. The store has the truth: who may write (a lease), which
attempt is the newest (a fence), and what was committed. A copy that no other machine went on from is kept
as it is, and what it has beyond the store is shipped; any other is made anew from the store, after a number
was taken: from then on nobody else adds to what it is made of.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from pipeline.config import Config
from pipeline.data.store import open_objects
from pipeline.data.store.cache import locked
from pipeline.errors import PipelineError, WorldStateError, one_line
from pipeline.launch.fence import SupersededError, begin_attempt, newest_token, note_newer, token_of
from pipeline.launch.remote_checkpoints import FOLDER, entomb_unfinished, restore
from pipeline.launch.remote_copy import has_secret, is_newest, make_anew, new_secret, note_secret
from pipeline.launch.remote_fence import newest_attempt, refuse_superseded_at, take_number
from pipeline.launch.remote_lease import RemoteLease, lock_identity
from pipeline.launch.shipment import Shipment
from pipeline.launch.shipper import Shipper

logger = logging.getLogger(__name__)

FINISH_WAIT_S = 60.0
"""Longest time that a job's end waits for a store that is away."""


class RemoteRun:
    """A run at an address while this process holds it; made by `held_run`."""

    def __init__(self, address: str, run_dir: Path, config: Config) -> None:
        self.address, self.run_dir = address.rstrip("/"), run_dir
        self.store = open_objects(self.address, config.data.store)
        self._keep_last = config.train.keep_last
        self._token = 0
        self._unused = 0
        """The number of a takeover, which the first attempt has."""
        self._attempt = ""
        lock = lock_identity(lock_file(run_dir))
        self._lease = RemoteLease(self.store, config.data.store, lock, self._lost)

    def begin_attempt(self, job: str = "") -> str:
        """The name of a new attempt, whose copy has the newest whole checkpoints of the store.

        Raises SupersededError where another job has the run by now, WorldStateError for a store that is
        out of reach, or a disk that refuses.
        """
        self._lease.confirm()
        try:
            self._attempt = self._numbered(job)
            self._token = token_of(self._attempt)
            # Whoever lost the lease before this line is told here, and later the fence of the copy tells.
            self._lease.refuse_lost()
            # Only now: what an earlier attempt commits from here on finds its name taken. And a later one,
            # where there is one by now, has nothing among these names.
            names = self.store.names(f"{FOLDER}/")
            refuse_superseded_at(self.store, self._token)
            entomb_unfinished(self.store, self.run_dir, names)
            restore(self.store, self.run_dir, self._keep_last)
        except OSError as error:
            raise WorldStateError(
                f"checkpoints of {self.address} cannot be kept in {self.run_dir}: {error.strerror}; make "
                "room, or type --data.store.cache_dir and a folder on a larger disk"
            ) from error
        return self._attempt

    def _numbered(self, job: str) -> str:
        """The name of a new attempt, which has one number at the store and in the copy."""
        token, self._unused = self._unused, 0
        while True:
            if token:
                refuse_superseded_at(self.store, token)
            else:
                secret = new_secret()
                note_secret(self.run_dir, secret)
                mine = partial(has_secret, self.run_dir)
                token = take_number(self.store, secret, newest_token(self.run_dir) + 1, mine)
            attempt = begin_attempt(self.run_dir, job, token)
            if token_of(attempt) == token:
                return attempt
            token = 0  # a rank of an earlier attempt has just noted this very number here

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
        if newest.token and is_newest(self.store, self.run_dir, newest.copy):
            return
        secret = new_secret()
        if newest.token:
            self._token = self._unused = take_number(self.store, secret)
        try:
            make_anew(self.store, self.run_dir, secret, self._token)
        except OSError as error:
            raise WorldStateError(
                f"a working copy of {self.address} cannot be kept in {self.run_dir}: {error.strerror}; make "
                "room, or type --data.store.cache_dir and another folder"
            ) from error

    def release(self) -> None:
        """Let the run go."""
        self._lease.release()
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

    def _lost(self, why: str) -> None:
        logger.warning("[event] the lease of %s %s: this job stops", self.address, why)
        note_newer(self.run_dir, newest_token(self.run_dir) + 1)


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


def lock_file(run_dir: Path) -> Path:
    """What a process that works in a copy has locked; beside it, as the copy may be made anew."""
    return run_dir.with_name(f"{run_dir.name}.lock")


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
    with locked(lock_file(run_dir), wait=False) as mine:
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
