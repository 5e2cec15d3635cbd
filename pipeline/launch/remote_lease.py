"""One live job a run, on whatever machine: a lease object that its holder replaces every few seconds.

Who wants the run watches that object for longer than its holder's interval and takes it over only if it
did not change, so no two clocks are compared. The lease keeps jobs apart that would only disturb each
other; what makes it safe when it errs is the fence (remote_fence.py).
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline.errors import WorldStateError
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


class RemoteLease:
    """The lease of a run, held from `acquire` to `release`; `lost` is called, once, where another took it."""

    def __init__(self, store: ObjectStore, copy: str, lost: Callable[[], None]) -> None:
        self._store, self._lost = store, lost
        self._said = holder() | {"copy": copy, "job": secrets.token_hex(8), "renew_s": RENEW_S}
        self._renewals = 0
        self._tag = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

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
            # Of this very copy: its folder is locked by this process, so whoever held the lease is dead.
            if not said.get("released") and said.get("copy") != self._said["copy"]:
                self._watch(there, said)
            self._tag = self._store.replace(NAME, self._content(), there.tag) or ""
        if not self._store.heeds_conditions(NAME):
            self._store.remove(NAME)
            self._tag = ""
            raise WorldStateError(
                f"the store at {self._store.root} says yes to writes whose condition (If-None-Match, "
                "If-Match) does not hold, so two jobs could write one run; take a store that knows them"
            )
        self._thread.start()

    def release(self, *, began: bool) -> None:
        """Let the next job take it at once; a run that never began leaves nothing."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self._tag:
            return
        try:
            if began:
                self._store.replace(NAME, self._content(released=True), self._tag)
            else:
                self._store.remove(NAME)
        except WorldStateError as error:
            logger.debug("the lease stays: %s", error)

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

    def _renew(self) -> None:
        while not self._over.wait(RENEW_S):
            self._said["renewals"] = self._renewals + 1
            try:
                tag = self._store.replace(NAME, self._content(), self._tag)
            except WorldStateError as error:  # away: the same content again, as it may have arrived
                logger.debug("the lease was not renewed: %s", error)
                continue
            if tag is None:
                self._tag = ""
                self._lost()
                return
            self._tag, self._renewals = tag, self._renewals + 1

    def _content(self, *, released: bool = False) -> bytes:
        return json.dumps(self._said | ({"released": True} if released else {})).encode()


def _parsed(there: Tagged) -> dict[str, Any]:
    try:
        said = json.loads(there.data)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
