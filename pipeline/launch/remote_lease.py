"""One live job a run, on whatever machine: a lease object that its holder replaces every few seconds.

Who wants the run watches that object for longer than its holder's interval and takes it over only if it
did not change, so no two clocks are compared. The lease keeps jobs apart that would only disturb each
other; what makes it safe when it errs is the fence (remote_fence.py).
"""

from __future__ import annotations

import dataclasses
import json
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import StoreConfig
from pipeline.data.store import open_objects
from pipeline.errors import WorldStateError, one_line
from pipeline.launch.fence import SupersededError
from pipeline.launch.remote_fence import holder

if TYPE_CHECKING:  # it imports boto3, which runs in a folder do without
    from pipeline.data.store.objects import ObjectStore, Tagged

logger = logging.getLogger(__name__)

NAME = "lease"
RENEW_S = 4.0
"""Time between two renewals."""
INTERVALS = 4
"""A lease that stays as it is for so many of its renewals is a dead one's."""
_LONGEST_RENEW_S = 60.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def lock_identity(path: Path) -> str:
    """What a lock file of this machine has in common with no other one, as long as the machine runs.

    "" where the machine does not tell. The start of the kernel is in it: disks that were cloned are the
    same in all else.
    """
    try:
        stat, boot = path.stat(), _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
    return f"{socket.gethostname()}:{boot}:{stat.st_dev}:{stat.st_ino}"


class RemoteLease:
    """The lease of a run, held from `acquire` to `release`; `lost` is called, once, with why it ended before.

    `lock` is the identity of the lock that this process holds on the working copy.
    """

    def __init__(
        self, store: ObjectStore, config: StoreConfig, lock: str, lost: Callable[[str], None]
    ) -> None:
        self._store, self._lost = store, lost
        # Of one renewal that hangs there is time for two more until somebody may take the lease: each has
        # half an interval to connect, half of one for the answer, and is not tried again in itself.
        quick = dataclasses.replace(config, timeout_s=min(config.timeout_s, RENEW_S / 2), attempts=1)
        self._renewing = open_objects(store.root, quick)
        self._said = holder() | {"lock": lock, "job": secrets.token_hex(8), "renew_s": RENEW_S}
        self._renewals = 0
        self._tag = ""
        self._sure_until_s = 0.0
        self._writing = threading.Lock()
        self._over, self._is_lost = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self) -> None:
        """Take it; raises WorldStateError where a live job holds it, or the store has no conditions."""
        while not self._tag:
            there = self._store.read(NAME)
            if there is None:
                if self._store.create(NAME, self._content()):
                    made = self._store.read(NAME)
                    self._tag = made.tag if made and made.data == self._content() else ""
                continue
            said = _parsed(there)
            # Of this very lock, which this process holds: whoever held the lease is dead.
            if not said.get("released") and (not said.get("lock") or said["lock"] != self._said["lock"]):
                self._watch(there, said)
            self._tag = self._store.replace(NAME, self._content(), there.tag) or ""
        if not self._store.heeds_conditions(NAME):
            self._store.remove(NAME)
            self._tag = ""
            raise WorldStateError(
                f"the store at {self._store.root} says yes to writes whose condition (If-None-Match, "
                "If-Match) does not hold, so two jobs could write one run; take a store that knows them"
            )
        self._sure_until_s = time.monotonic() + INTERVALS * RENEW_S
        self._thread.start()

    def confirm(self) -> None:
        """Renew it now; raises SupersededError where it was lost, WorldStateError where none answers."""
        if not self._is_lost.is_set() and not self._replace(self._store):
            self._lose("was taken over")
        self.refuse_lost()

    def refuse_lost(self) -> None:
        """Raises SupersededError where it is known to be lost; asks nobody."""
        if self._is_lost.is_set():
            raise SupersededError(
                f"run {self._store.root} is another job's by now: the lease of this one was lost, and "
                "nothing that this process does counts any more"
            )

    def release(self) -> None:
        """Let the next job take it at once; never touches a lease that is another's by now."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            if self._tag and not self._is_lost.is_set():
                # Not removed: not every store has a condition for that, and it might be another's by then.
                self._replace(self._store, released=True)
        except WorldStateError as error:
            logger.debug("the lease stays: %s", error)
        self._renewing.close()

    def _watch(self, there: Tagged, said: dict[str, Any]) -> None:
        """Returns when the lease did not change for long enough; raises WorldStateError where it did."""
        interval_s = min(float(said.get("renew_s", RENEW_S)), _LONGEST_RENEW_S)
        who = f"pid {said.get('pid', '?')} on {said.get('host', '?')}"
        watch_s = INTERVALS * interval_s
        logger.info("[event] %s was held by %s: is it alive? %.0f s", self._store.root, who, watch_s)
        end_s = time.monotonic() + watch_s
        while (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(left_s, interval_s / 2))
            now = self._store.read(NAME)
            if now is None or (now.tag != there.tag and _parsed(now).get("released")):
                return
            if now.tag != there.tag:
                raise WorldStateError(
                    f"run {self._store.root} is held by a live job ({who}); wait for it, stop it, or choose "
                    "another --name"
                )

    def _keep(self) -> None:
        """Renew it until it is over or lost, whatever happens: a thread that ended unheard would cost it."""
        pause_s = RENEW_S
        try:
            while not self._over.wait(pause_s):
                try:
                    kept = self._replace(self._renewing)
                except WorldStateError as error:  # away, or slow
                    self._say_late(error)
                    pause_s = RENEW_S / 8
                    continue
                if not kept:
                    self._lose("was taken over")
                    return
                pause_s = RENEW_S
        except BaseException as error:  # noqa: BLE001 - said, and ends the job by its fence
            self._lose(f"can no longer be renewed ({type(error).__name__}: {one_line(error, 200)})")

    def _replace(self, store: ObjectStore, *, released: bool = False) -> bool:
        """Whether the lease is still ours, and has a new content by now."""
        with self._writing:
            began_s = time.monotonic()
            self._renewals += 1
            content = self._content(released=released)
            tag = store.replace(NAME, content, self._tag)
            if tag is None:
                there = store.read(NAME)
                if there is None or _parsed(there).get("job") != self._said["job"]:
                    return False
                # An earlier one of ours, whose answer was lost, has arrived.
                tag = store.replace(NAME, content, there.tag)
            if tag is None:
                return False
            self._tag = tag
            if began_s > self._sure_until_s:
                logger.info("[event] the lease of %s is renewed again, and was nobody else's", store.root)
            self._sure_until_s = began_s + INTERVALS * RENEW_S
            return True

    def _say_late(self, error: WorldStateError) -> None:
        logger.debug("the lease was not renewed: %s", error)
        if 0.0 < self._sure_until_s < time.monotonic():
            self._sure_until_s = 0.0
            logger.warning(
                "[event] the lease of %s was not renewed for %.0f s: another machine may take the run (%s)",
                self._store.root, INTERVALS * RENEW_S, one_line(error, 200),
            )  # fmt: skip

    def _lose(self, why: str) -> None:
        with self._writing:
            known = self._is_lost.is_set()
            self._is_lost.set()
        if not known:
            self._lost(why)

    def _content(self, *, released: bool = False) -> bytes:
        said = self._said | {"renewals": self._renewals} | ({"released": True} if released else {})
        return json.dumps(said).encode()


def _parsed(there: Tagged) -> dict[str, Any]:
    try:
        said = json.loads(there.data)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
