"""Checkpoints as they are written: file after file, each hashed on its way and on the disk, COMMIT last.

A folder is a place to put named files, to commit them and to attach a score. Whoever writes to another
kind of storage needs the same four operations and no other.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.disk import flush
from pipeline.errors import CheckpointError
from pipeline.train.checkpoint import COMMIT, FORMAT, SCORE, STATE, WEIGHTS, Score, committed_files
from pipeline.train.model_card import MODEL_CARD, ModelCard
from pipeline.train.signed_json import signed

Pieces = Iterable[bytes | memoryview]


@dataclass(frozen=True)
class Content:
    """What a checkpoint holds."""

    tensors: Mapping[str, Pieces]
    """Content of the safetensors files, by name."""
    card: ModelCard
    state: Mapping[str, Any]
    score: Score | None = None
    """Where it is known already; else it is attached later."""


class CheckpointFolder:
    """A checkpoint in the making, in a folder of its own. Raises OSError where the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, dict[str, Any]] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of all files that were put."""
        return sum(file["bytes"] for file in self._files.values())

    def put(self, name: str, pieces: Pieces) -> None:
        """Write a file; it is on the disk when this returns."""
        digest, num_bytes = hashlib.sha256(), 0
        with (self.path / name).open("wb", buffering=0) as file:
            for piece in pieces:
                digest.update(piece)  # like the write, without the interpreter's lock
                num_bytes += _write_all(file.fileno(), piece)
            os.fsync(file.fileno())
        self._files[name] = {"bytes": num_bytes, "sha256": digest.hexdigest()}

    def put_all(self, content: Content) -> None:
        """Write every file but COMMIT, in a new folder."""
        if self.path.exists():
            shutil.rmtree(self.path)  # a write of this very attempt that failed
        self.path.mkdir(parents=True)
        flush(self.path.parent.parent)  # where the first checkpoint of a run has made the folder of all
        for name, pieces in content.tensors.items():
            self.put(name, pieces)
        self.put(MODEL_CARD, [_json(content.card.to_dict())])
        self.put(STATE, [_json(content.state)])
        if content.score:
            _replace(self.path / SCORE, _score(content.score, self._files[WEIGHTS]["sha256"]))

    def commit(self, attempt: str) -> None:
        """Make it exist, by one rename. On the disk when this returns.

        FileNotFoundError where a later attempt has cleared the unfinished folder away.
        """
        flush(self.path)
        _replace(self.path / COMMIT, signed({"format": FORMAT, "attempt": attempt, "files": self._files}))
        flush(self.path.parent)

    def discard(self) -> None:
        """Remove what was put, as far as the disk lets; without COMMIT the rest counts for nobody."""
        with suppress(OSError):
            (self.path / COMMIT).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)


def attach_score(folder: Path, score: Score) -> None:
    """Note the score of a committed checkpoint's weights, durably and at once. Raises OSError."""
    try:
        weights = committed_files(folder)[WEIGHTS]["sha256"]
    except CheckpointError as error:
        raise OSError(str(error)) from error
    _replace(folder / SCORE, _score(score, weights))


def _score(score: Score, weights_sha256: str) -> bytes:
    values = {"miou": score.miou, "pixel_accuracy": score.pixel_accuracy, "weights": weights_sha256}
    return signed(values)


def _replace(path: Path, content: bytes) -> None:
    """Write a file that readers see whole or not at all; on the disk when this returns."""
    part = path.with_name(f"{path.name}.tmp")
    with part.open("wb", buffering=0) as file:
        _write_all(file.fileno(), content)
        os.fsync(file.fileno())
    part.rename(path)
    flush(path.parent)


def _write_all(descriptor: int, content: bytes | memoryview) -> int:
    """Write everything, however much one call takes, and return its size."""
    left = memoryview(content)
    size = left.nbytes
    while left.nbytes:
        left = left[os.write(descriptor, left) :]
    return size


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()
