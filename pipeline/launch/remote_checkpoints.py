"""Checkpoints at the store: which are committed there, which an attempt needs from there, which may go.

A folder of objects is a checkpoint once its COMMIT.json is there, made where nothing may have that name.
An attempt that begins makes the COMMIT of every unfinished folder of earlier ones itself, as a tombstone:
whoever was at it, however late it wakes up, finds the name taken. A tombstone stays; it is a few bytes.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.disk import flush
from pipeline.errors import CheckpointError, ShardError
from pipeline.train.checkpoint import COMMIT, SCORE, list_committed, read_score, step_of, verify

if TYPE_CHECKING:  # it imports boto3, which runs in a folder do without
    from pipeline.data.store.objects import ObjectStore

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
TOMBSTONE = b"superseded\n"
_OBJECT = re.compile(rf"{FOLDER}/step_\d+-[^/]+/[^/]+")


def folders_of(names: Mapping[str, int]) -> dict[str, list[str]]:
    """Checkpoint → names of its objects, of all that have any."""
    folders: dict[str, list[str]] = {}
    for name in names:
        if _OBJECT.fullmatch(name):
            folders.setdefault(name.split("/")[1], []).append(name)
    return folders


def commit_of(folder: str) -> str:
    """The name of a checkpoint's COMMIT."""
    return f"{FOLDER}/{folder}/{COMMIT}"


def committed(names: Mapping[str, int]) -> list[str]:
    """Checkpoints with a COMMIT that is no tombstone, the newest step first (unverified)."""
    found = [f for f in folders_of(names) if names.get(commit_of(f), 0) not in (0, len(TOMBSTONE))]
    return sorted(found, key=lambda folder: (step_of(Path(folder)), folder), reverse=True)


def kept(folders: Iterable[str], scores: Mapping[str, float], keep_last: int) -> list[str]:
    """The last few and the best one, the newest first: what train/retention.py keeps of a folder."""
    newest = sorted(folders, key=lambda folder: (step_of(Path(folder)), folder), reverse=True)
    scored = sorted(
        (folder for folder in newest if folder in scores),
        key=lambda folder: (-scores[folder], step_of(Path(folder)), folder),
    )
    return [folder for folder in newest if folder in newest[:keep_last] or folder in scored[:1]]


def scores_at(store: ObjectStore, folders: Iterable[str], names: Mapping[str, int]) -> dict[str, float]:
    """Checkpoint → mIoU, of those whose score is at the store and can be read."""
    scores = {}
    for folder in folders:
        there = store.read(f"{FOLDER}/{folder}/{SCORE}") if f"{FOLDER}/{folder}/{SCORE}" in names else None
        with suppress(ValueError, KeyError, TypeError):
            if there:
                scores[folder] = float(json.loads(there.data)["miou"])
    return scores


def entomb_unfinished(store: ObjectStore, run_dir: Path, names: Mapping[str, int]) -> None:
    """End every write of a checkpoint that is neither committed there nor here."""
    here = {path.name for path in list_committed(run_dir)}
    for folder, objects in folders_of(names).items():
        if commit_of(folder) in names:
            continue
        if folder not in here and store.create(commit_of(folder), TOMBSTONE):
            for name in objects:
                store.remove(name)


def restore(store: ObjectStore, run_dir: Path, keep_last: int) -> None:
    """Bring the checkpoints that count and that this copy lacks; a damaged one is followed by the next.

    What came damaged stays in the copy, where whoever looks for the newest walks past it by name.
    Raises WorldStateError for a store out of reach, OSError for a disk that refuses.
    """
    names = store.names(f"{FOLDER}/")
    there = committed(names)
    damaged = set_aside(run_dir)
    scores = scores_at(store, there, names)
    sound: set[str] = set()
    while True:
        here = {path.name: path for path in list_committed(run_dir)}
        scores |= {name: score.miou for name, path in here.items() if (score := read_score(path))}
        wanted = kept((here.keys() | set(there)) - damaged, scores, keep_last)
        if wanted and wanted[0] not in sound and wanted[0] in here and not _is_sound(here[wanted[0]]):
            lacking = wanted[:1]
        else:
            lacking = [folder for folder in wanted if folder not in here]
        if not lacking:
            return
        folder = lacking[0]
        try:
            if folder not in there:
                raise CheckpointError("damaged here, and never shipped")
            _fetch(store, run_dir / FOLDER / folder, folders_of(names)[folder])
            sound.add(folder)
        except (CheckpointError, ShardError) as error:
            damaged.add(folder)
            logger.warning("[event] %s/%s/%s: %s", store.root, FOLDER, folder, error)


def set_aside(run_dir: Path) -> set[str]:
    """Checkpoints that an attempt walked past in this copy."""
    return {path.name.removeprefix("damaged-") for path in (run_dir / FOLDER).glob("damaged-step_*")}


def _is_sound(folder: Path) -> bool:
    try:
        verify(folder)
    except CheckpointError:
        return False
    return True


def _fetch(store: ObjectStore, target: Path, objects: Iterable[str]) -> None:
    """Bring a checkpoint, COMMIT last; raises CheckpointError where what came is not what was committed."""
    shutil.rmtree(target, ignore_errors=True)
    logger.info("[event] fetching %s from %s", target.name, store.root)
    for name in sorted(objects, key=lambda name: name.endswith(f"/{COMMIT}")):
        store.fetch(name, target / name.split("/")[-1])
    flush(target)
    flush(target.parent)
    verify(target)


def remove_superfluous(
    store: ObjectStore, run_dir: Path, names: dict[str, int], keep_last: int, attempt: str
) -> None:
    """Remove, COMMIT first, what the store has beyond the copy and beyond what counts; keeps `names` true.

    A copy that lost files to whoever clears temporary folders never costs the store one that counts.
    """
    here = {path.name for path in list_committed(run_dir)}
    there = committed(names)
    if any(folder not in here for folder in there):
        counting = kept(set(there) - set_aside(run_dir), scores_at(store, there, names), keep_last)
        for folder in there:
            if folder not in here and folder not in counting:
                _remove(store, sorted(folders_of(names)[folder], key=lambda n: not n.endswith(COMMIT)), names)
    for folder, objects in folders_of(names).items():
        ended = commit_of(folder) in names
        files = [name for name in objects if not name.endswith(f"/{COMMIT}")]
        if folder in here or not files or (ended and names[commit_of(folder)] != len(TOMBSTONE)):
            continue
        if not ended and not folder.endswith(f"-{attempt}"):  # somebody else's, who may still be at it
            if not store.create(commit_of(folder), TOMBSTONE):
                continue
            names[commit_of(folder)] = len(TOMBSTONE)
        _remove(store, files, names)


def _remove(store: ObjectStore, objects: Iterable[str], names: dict[str, int]) -> None:
    for name in objects:
        store.remove(name)
        names.pop(name, None)
