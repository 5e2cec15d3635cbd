"""The fence of a run that is kept in an object store: attempts numbered there, for all machines.

An attempt takes its number by making `attempts/NNNN` where nothing may have that name. The object says
which working copy it belongs to, so that a copy knows whether the run went on elsewhere since.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.errors import WorldStateError
from pipeline.launch.fence import FOLDER, SupersededError

if TYPE_CHECKING:  # it imports boto3, which runs in a folder do without
    from pipeline.data.store.objects import ObjectStore


@dataclass(frozen=True)
class Newest:
    """The newest attempt at the store, 0 before the first, and the working copy that it was made in."""

    token: int
    copy: str


def holder() -> dict[str, object]:
    """Who holds something, for people."""
    return {"pid": os.getpid(), "host": socket.gethostname()}


def newest_attempt(store: ObjectStore) -> Newest:
    """The newest attempt of the run."""
    names = (name.removeprefix(f"{FOLDER}/") for name in store.names(f"{FOLDER}/"))
    token = max((int(name) for name in names if name.isdigit()), default=0)
    there = store.read(_name(token)) if token else None
    try:
        return Newest(token, str(json.loads(there.data)["copy"]) if there else "")
    except (ValueError, KeyError, TypeError) as error:
        raise WorldStateError(
            f"{store.root}/{_name(token)} is damaged ({error}); remove it to go on"
        ) from error


def take_number(store: ObjectStore, copy: str) -> int:
    """The number of a new attempt; all earlier ones are refused from now on."""
    token = newest_attempt(store).token + 1
    said = {"copy": copy, "nonce": secrets.token_hex(8)} | holder()
    while not store.create(_name(token), json.dumps(said).encode()):
        token += 1
    return token


def refuse_superseded_at(store: ObjectStore, token: int) -> None:
    """Raises SupersededError where a later attempt than that one has begun, on whatever machine."""
    if store.size(_name(token + 1)) is not None:
        raise SupersededError(
            f"attempt {token:04d} of run {store.root} is over: attempt {token + 1:04d} has begun since; "
            "nothing that this process does counts any more"
        )


def _name(token: int) -> str:
    return f"{FOLDER}/{token:04d}"
