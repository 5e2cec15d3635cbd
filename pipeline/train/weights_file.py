"""A file of published weights by one string: where it lies, what its hash is, a checked copy on this node.

    /path/resnet18-f37072fd.pth                         a path; torchvision's names end in their hash
    https://host/resnet50.pth#sha256=<64 hex digits>    an address without one in its name
    hf://owner/repo/model.safetensors[@revision]        a file of the Hugging Face hub, which tells its sha256

A remote file is never read without a hash that was known before it came. It is downloaded once a node: a
process that downloads holds a lock, which dies with it, and what it leaves goes on in the next one's
hands. It is written under another name, checked, synced and renamed; the copy is checked again at each use.
The addresses that may be opened, the client, its time-outs and its tries are those of remote shards.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from pipeline.config import StoreConfig, require
from pipeline.data.store.address import is_address, parse_address, refuse_internal_host
from pipeline.data.store.cache import locked, private_folder
from pipeline.data.store.incoming import PARTIAL
from pipeline.disk import file_sha256, flush
from pipeline.errors import ConfigError, ShardError, WorldStateError, without_credentials
from pipeline.train.hub_names import WEIGHTS, file_address

if TYPE_CHECKING:
    from pipeline.data.store.fetcher import Fetcher
    from pipeline.data.store.http import HttpTransport

logger = logging.getLogger(__name__)

_MARK = "#sha256="
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NAMED = re.compile(r"-([0-9a-f]{8}|[0-9a-f]{64})\.\w+$")
"""torchvision's names end in the first eight digits: enough against accidents, on top of https."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_TRIES = 2
"""Downloads of a file whose bytes have another hash, before that is believed."""
_HOPS = 5
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class WeightsFile:
    """What was typed, taken apart."""

    shown: str
    """For messages: without credentials."""
    place: str
    """A path, or the https:// address."""
    sha256: str
    """The whole hash, its first eight digits, or "" where only the hub, or nobody, knows it."""
    is_remote: bool
    """Whether it lies at an address."""


def parse_weights(text: str) -> WeightsFile:
    """The parts of what was typed; raises ConfigError, before anything is opened, for what may not be."""
    place, mark, typed_hash = text.partition(_MARK)
    shown = without_credentials(place.partition("?")[0])  # a signed address is a credential too
    require(
        not mark or _SHA256.fullmatch(typed_hash.lower()) is not None,
        f"{WEIGHTS}: {_MARK} takes the 64 hex digits that sha256sum prints, got {typed_hash!r}",
    )
    named = _NAMED.search(place)
    sha256 = typed_hash.lower() or (named[1] if named else "")
    if not is_address(place):
        return WeightsFile(shown, place, sha256, is_remote=False)
    from_hub = place.lower().startswith("hf://")
    url = file_address(place) if from_hub else place
    _refuse_address(url, shown)
    require(
        from_hub or sha256 != "",
        f"{WEIGHTS} {shown}: nothing says which bytes are meant; append {_MARK} and the 64 hex digits that "
        "sha256sum prints for the file (or take one whose name ends in its hash, as torchvision's do)",
    )
    return WeightsFile(shown, url, sha256, is_remote=True)


def bring(file: WeightsFile, config: StoreConfig) -> Path:
    """The path of the file, checked against its hash; downloaded where this node has no copy.

    A path without a hash is taken as it is. Raises ConfigError for a file that is absent or not the one
    that its hash names, WorldStateError for a server or a disk that refuses.
    """
    if file.is_remote:
        return _bring_remote(file, config)
    path = Path(file.place)
    absent = "is a folder; type the file in it" if path.is_dir() else "no such file; type the path of a file"
    require(path.is_file(), f"{WEIGHTS} {file.shown}: {absent}, a .pth or .safetensors")
    try:
        found = file_sha256(path)
    except OSError as error:
        raise ConfigError(f"{WEIGHTS} {file.shown} cannot be read: {error.strerror}") from error
    require(
        found.startswith(file.sha256),
        f"{WEIGHTS} {file.shown}: the file's sha256 begins with {found[:16]}, and not with "
        f"{file.sha256[:16]}; copy it again, or correct the hash (eight digits at the end of a name are "
        f"taken for the first of its sha256: where they are a date, append {_MARK} and the whole hash)",
    )
    return path


def _bring_remote(file: WeightsFile, config: StoreConfig) -> Path:
    # requests takes a while to import, and a path does without.
    from pipeline.data.store.fetcher import Fetcher  # noqa: PLC0415
    from pipeline.data.store.http import HttpTransport  # noqa: PLC0415

    refuse_internal_host(urlsplit(file.place).hostname or "", file.shown)
    folder = private_folder(config.cache_dir) / "weights"
    transport = HttpTransport(config.timeout_s, stay_private=True)
    with closing(Fetcher(transport, config.attempts)) as fetcher:
        try:
            sha256 = file.sha256 or _hub_sha256(file, transport, fetcher)
            folder.mkdir(mode=0o700, exist_ok=True)
            key = hashlib.sha256(f"{file.place}{_MARK}{sha256}".encode()).hexdigest()[:16]
            name = re.sub(r"[^A-Za-z0-9._-]", "_", file.place.rpartition("/")[2])[-80:]
            path = folder / f"{key}-{name}"  # ends as the file does: by that it will be read
            with locked(folder / f"{key}.lock", wait=True):
                _download(fetcher, file, sha256, path)
            return path
        except ShardError as error:  # the store's word for a file that is not there, or not whole
            raise ConfigError(f"{WEIGHTS} {file.shown}: {error}") from error
        except OSError as error:
            raise WorldStateError(
                f"cannot keep {file.shown} in {folder}: {error.strerror}; make room there, or type "
                "--data.store.cache_dir and another folder"
            ) from error


def _download(fetcher: Fetcher, file: WeightsFile, sha256: str, path: Path) -> None:
    """Bring the file to `path`, where it is not already; raises ConfigError where its hash is another.

    The lock is held. What an earlier process left is gone on with, and thrown away where that gives
    other bytes: a power cut may have damaged it.
    """
    if path.exists():
        if file_sha256(path).startswith(sha256):
            return
        path.unlink()
    partial_path = path.with_name(path.name + PARTIAL)
    logger.info("[weights] downloading %s", file.shown)
    found = ""
    for _ in range(_TRIES):
        digest = hashlib.sha256()
        with partial_path.open("a+b") as target:
            partial_path.chmod(0o600)
            target.seek(0)
            while data := target.read(_READ_BYTES):
                digest.update(data)
            for data in fetcher.parts(file.place, target.tell()):
                digest.update(data)
                target.write(data)
                target.flush()  # a part that has come is not asked for again, whatever is killed
            os.fsync(target.fileno())
        found = digest.hexdigest()
        if found.startswith(sha256):
            partial_path.rename(path)
            flush(path.parent)
            return
        partial_path.unlink()
    raise ConfigError(
        f"{WEIGHTS} {file.shown}: the sha256 of what the server sends begins with {found[:16]}, and not with "
        f"{sha256[:16]}; check the address and the hash"
    )


def _hub_sha256(file: WeightsFile, transport: HttpTransport, fetcher: Fetcher) -> str:
    """The sha256 that the hub's own answer has for the file; no other server's word is taken for it."""
    url, host = file.place, urlsplit(file.place).netloc
    for _ in range(_HOPS):  # a renamed repository's answer leads to its new name
        answer: Mapping[str, str] = fetcher.tried(url, partial(transport.headers, url))
        linked = answer.get("X-Linked-Etag", "").strip('"')
        if _SHA256.fullmatch(linked):
            return linked
        url = urljoin(url, answer.get("Location", url))
        if url == file.place or urlsplit(url).netloc != host:
            break
    raise ConfigError(
        f"{WEIGHTS} {file.shown}: the hub has no sha256 of this file, which it keeps of large files alone; "
        f"append {_MARK} and the 64 hex digits that sha256sum prints for it"
    )


def _refuse_address(url: str, shown: str) -> None:
    """Raises ConfigError for what is no plain https address; plain http is for this machine alone."""
    scheme = url.partition(":")[0].lower()
    elsewhere = (
        f"{WEIGHTS} {shown}: weights are read from a path, https://… or hf://OWNER/REPO/FILE; copy the file "
        "to a folder and type its path"
    )
    require(scheme in ("https", "http"), elsewhere)
    require("?" not in url, f"{WEIGHTS} {shown}: type the file's plain address, without what follows the ?")
    require("#" not in url, f"{WEIGHTS} {shown}: after # only sha256= and 64 hex digits may follow")
    address = parse_address(url, WEIGHTS)
    require(scheme == "https" or address.host in _LOOPBACK, elsewhere)
