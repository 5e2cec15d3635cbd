"""The fence of a run that is kept in an object store: attempts numbered there, for all machines.

An attempt takes its number by making `attempts/NNNN` where nothing may have that name, always the next
one, so of two that want it one is refused. The object says a secret that the working copy wrote down
before, by which a copy knows whether the run went on elsewhere since.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import WorldStateError
from pipeline.launch.fence import FOLDER, SupersededError

if TYPE_CHECKING:  # it imports boto3, which runs in a folder do without
    from pipeline.data.store.objects import ObjectStore


@dataclass(frozen=True)
class Newest:
    """The newest attempt at the store, 0 before the first, and the secret of the copy that took it."""

    token: int
    copy: str


def holder() -> dict[str, object]:
    """Who holds something, for people."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def newest_attempt(store: ObjectStore) -> Newest:
    """The newest attempt of the run."""
    token = _newest_token(store)
    there = store.read(_name(token)) if token else None
    try:
        return Newest(token, str(json.loads(there.data)["copy"]) if there else "")
    except (ValueError, KeyError, TypeError) as error:
        raise WorldStateError(
            f"{store.root}/{_name(token)} is damaged ({error}); remove it to go on"
        ) from error


def take_number(
    store: ObjectStore, secret: str, least: int = 1, mine: Callable[[str], bool] | None = None
) -> int:
    """The number of a new attempt, `least` or larger; all earlier ones are refused from now on.

    Every number below it is taken by somebody, so no two attempts pass each other. With `mine`, which
    knows the secrets of this copy, raises SupersededError where the newest attempt is of another one.
    """
    said = json.dumps({"copy": secret} | holder()).encode()
    while True:
        newest = newest_attempt(store)
        if mine and newest.token and not mine(newest.copy):
            raise SupersededError(
                f"run {store.root} went on in another working copy, as attempt {newest.token:04d}: nothing "
                "that this process does counts any more",
                newest.token,
            )
        if store.create(_name(newest.token + 1), said) and newest.token + 1 >= least:
            return newest.token + 1


def refuse_superseded_at(store: ObjectStore, token: int) -> None:
    """Raises SupersededError where a later attempt than that one has begun, on whatever machine."""
    newest = _newest_token(store)
    if newest > token:
        raise SupersededError(
            f"attempt {token:04d} of run {store.root} is over: attempt {newest:04d} has begun since; "
            "nothing that this process does counts any more",
            newest,
        )


def _newest_token(store: ObjectStore) -> int:
    names = (name.removeprefix(f"{FOLDER}/") for name in store.names(f"{FOLDER}/"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def _name(token: int) -> str:
    return f"{FOLDER}/{token:04d}"
