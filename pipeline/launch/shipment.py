"""What a run's working copy has and the store lacks, in the order in which it is shipped there.

    pictures, segments of the journal, config, quarantine and report
    each checkpoint's files, then its COMMIT, then its score
    result.json

The checkpoints are listed before the journal is read, so whatever a COMMIT or a score at the store stands
for is in the segments that came before it. COMMIT and segments are made where nothing may have their names.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.quarantine import FILE_NAME as QUARANTINE
from pipeline.disk import file_sha256
from pipeline.errors import CheckpointError, WorldStateError
from pipeline.launch.fence import token_of
from pipeline.launch.remote_checkpoints import FOLDER, commit_of, remove_superfluous
from pipeline.launch.remote_fence import refuse_superseded_at
from pipeline.tracking.segments import unshipped
from pipeline.train.checkpoint import COMMIT, SCORE, committed_files, list_committed

if TYPE_CHECKING:  # it imports boto3, which runs in a folder do without
    from pipeline.data.store.objects import ObjectStore

logger = logging.getLogger(__name__)

RECORDS = ("config.json", QUARANTINE, "report.html")
"""Files that change, shipped whenever they did."""
RESULT = "result.json"
Stamp = tuple[int, int] | bytes
"""What a file that changes was when it was sent: its time and size, or all of a small one."""
_MOST_ROUNDS = 8
"""Plans that may be overtaken by a process that ships the same copy, as a rank that was taken for dead."""


@dataclass(frozen=True)
class Upload:
    """One object to be written: a file as it is then, or content as it was when this was planned."""

    name: str
    path: Path | None = None
    data: bytes | None = None
    """Made only where nothing has the name."""
    sha256: str = ""
    """What the file must be, where that is known."""
    stamp: Stamp | None = None
    """Of a file that changes."""


class Shipment:
    """Ships the working copy of an attempt, which must be the newest; for one thread at a time."""

    def __init__(self, store: ObjectStore, run_dir: Path, attempt: str, keep_last: int) -> None:
        self._store, self._run_dir, self._attempt, self._keep_last = store, run_dir, attempt, keep_last
        self._names: dict[str, int] | None = None
        self._stamps: dict[str, Stamp] = {}
        self._damaged: set[str] = set()

    def ship(self) -> None:
        """Make the store have all that the copy has.

        Raises SupersededError where a later attempt has begun, WorldStateError where the store is out of
        reach, OSError where the copy cannot be read; what was shipped by then is not shipped again.
        """
        for _ in range(_MOST_ROUNDS):
            self._refuse_superseded()
            if self._names is None:
                self._names = self._store.names("")
            if all(self._send(upload) for upload in self._planned()):
                self._refuse_superseded()
                remove_superfluous(self._store, self._run_dir, self._names, self._keep_last, self._attempt)
                return
        raise WorldStateError(f"{self._store.root} changes while it is written; run the same command again")

    def outstanding(self) -> int:
        """How many objects the store lacks, as far as it is known here."""
        return sum(1 for _ in self._planned())

    def _planned(self) -> Iterator[Upload]:
        return planned(self._run_dir, self._names or {}, self._stamps, self._damaged)

    def _refuse_superseded(self) -> None:
        refuse_superseded_at(self._store, token_of(self._attempt))

    def _send(self, upload: Upload) -> bool:
        """Whether the object is as it should be; False where the rest of the plan no longer holds."""
        assert self._names is not None
        if not upload.sha256:  # of a checkpoint's files the COMMIT alone decides
            self._refuse_superseded()
        if upload.data is not None:
            if not self._store.create(upload.name, upload.data):
                self._refuse_superseded()
                self._names = None  # somebody else ships this copy: look again
                return False
            self._names[upload.name] = len(upload.data)
            return True
        assert upload.path is not None
        try:
            num_bytes = upload.path.stat().st_size
            if upload.sha256 and file_sha256(upload.path) != upload.sha256:
                logger.warning("[event] %s went bad on this disk and is not shipped", upload.path)
                self._damaged.add(upload.path.parent.name)
                return False
            self._store.put(upload.name, upload.path)
        except FileNotFoundError:  # removed by the saver, which has newer ones
            return True
        if upload.sha256 and self._store.size(upload.name) != num_bytes:
            raise WorldStateError(f"{self._store.root}/{upload.name} has another size than what was sent")
        self._names[upload.name] = num_bytes
        if upload.stamp is not None:
            self._stamps[upload.name] = upload.stamp
        return True


def planned(
    run_dir: Path, names: Mapping[str, int], stamps: Mapping[str, Stamp], damaged: Container[str]
) -> Iterator[Upload]:
    """What is to be shipped, in its order.

    `names` are the store's objects, `stamps` what was sent of files that change, `damaged` checkpoints to
    leave out.
    """
    folders = [folder for folder in list_committed(run_dir) if folder.name not in damaged]
    scores = {folder: _bytes(folder / SCORE) for folder in folders}
    segments = unshipped(run_dir, names)
    for path in sorted((run_dir / "pictures").rglob("*.png")):
        name = path.relative_to(run_dir).as_posix()
        if name not in names:
            yield Upload(name, path)
    for segment in segments:
        yield Upload(segment.name, data=segment.data)
    yield from _changed(run_dir, RECORDS, stamps)
    for folder in folders:
        yield from _of_checkpoint(folder, names)
        score = scores[folder]
        name = f"{FOLDER}/{folder.name}/{SCORE}"
        if score is not None and stamps.get(name) != score:
            yield Upload(name, folder / SCORE, stamp=score)
    yield from _changed(run_dir, (RESULT,), stamps)


def _of_checkpoint(folder: Path, names: Mapping[str, int]) -> Iterator[Upload]:
    """The files of a checkpoint and its COMMIT; nothing where it is there already, or damaged here."""
    content = _bytes(folder / COMMIT)
    if commit_of(folder.name) in names or content is None:
        return
    try:
        files = committed_files(folder)
    except CheckpointError:
        return  # removed meanwhile, or damaged: told by whoever looks for the newest
    for name, file in files.items():
        target = f"{FOLDER}/{folder.name}/{name}"
        if names.get(target) != file["bytes"]:
            yield Upload(target, folder / name, sha256=file["sha256"])
    if (folder / COMMIT).exists():
        yield Upload(commit_of(folder.name), data=content)


def _changed(run_dir: Path, records: tuple[str, ...], stamps: Mapping[str, Stamp]) -> Iterator[Upload]:
    for name in records:
        path = run_dir / name
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        stamp = stat.st_mtime_ns, stat.st_size
        if stamps.get(name) != stamp:
            yield Upload(name, path, stamp=stamp)


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
