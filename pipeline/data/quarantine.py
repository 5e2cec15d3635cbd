"""Damaged samples in training: read once more, then replaced by nothing to learn from, noted and counted.

A damaged sample keeps its position and its place in the batch, as mean colour labelled 255 throughout:
no other sample moves, no shape changes, and there is no state to carry. The run folder's
quarantine.jsonl names each one, and too many end the run. In evaluation a damaged sample is an error.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from pipeline.config import DataConfig
from pipeline.data.augment import IDENTITY_34, PAD_RGB, Crop, CropBuffers, augment
from pipeline.data.labels import IGNORE
from pipeline.data.reader import SampleReader, SampleRef
from pipeline.errors import SampleError, ShardError, WorldStateError

logger = logging.getLogger(__name__)

FILE_NAME = "quarantine.jsonl"


def read_crop(
    reader: SampleReader, ref: SampleRef, config: DataConfig, seed: int, position: int, into: CropBuffers
) -> Crop:
    """The crop of a position (see `augment`); raises SampleError where fresh bytes are damaged too."""
    try:
        return augment(reader.open(ref), config, seed, position, into)
    except SampleError:
        return augment(reader.reopen(ref), config, seed, position, into)


def quarantined_crop(into: CropBuffers) -> Crop:
    """What stands for a damaged sample: mean colour, label 255 throughout."""
    into.image_hw3[:] = PAD_RGB
    into.label_hw[:] = IGNORE
    return Crop(IDENTITY_34, (0, 0, 0, 0))


def quarantine_limit(config: DataConfig, num_samples: int) -> int:
    """Damaged samples of `num_samples` that a run goes on without."""
    if config.quarantine_max == 0 or config.quarantine_share == 0.0:
        return 0
    return max(1, min(config.quarantine_max, int(config.quarantine_share * num_samples)))


def num_quarantined(run_dir: Path) -> int:
    """Distinct samples in the run folder's list of damaged ones."""
    return len(_listed(run_dir / FILE_NAME))


def listed(run_dir: Path) -> list[dict[str, str]]:
    """Key, shard and error of each line of that list."""
    return _lines(run_dir / FILE_NAME)


class Quarantine:
    """One rank's notes of damaged samples, in a file that all ranks of all attempts append to.

    Noting never raises for their number: a rank that stopped by itself would leave the others waiting.
    They add their counts up, then all of them ask `refuse_above_limit`.
    """

    def __init__(self, run_dir: Path, limit: int, *, counts_earlier: bool) -> None:
        """`counts_earlier` for the one rank whose count includes what earlier attempts have noted."""
        self._path, self._limit = run_dir / FILE_NAME, limit
        self._known = _listed(self._path)
        self.count = len(self._known) if counts_earlier else 0
        """Distinct samples that this rank answers for; the sum over ranks is the run's."""
        self.total = 0
        """That sum, as it was last told to `refuse_above_limit`."""

    def note(self, position: int, shard: str, key: str, error: str) -> None:
        """Append a sample to the file and log it, unless it is known; raises WorldStateError."""
        if (shard, key) in self._known:
            return
        # Another rank may have met it in another epoch.
        self._known |= _listed(self._path)
        if (shard, key) in self._known:
            return
        line = json.dumps({"key": key, "shard": shard, "error": error}, ensure_ascii=False)
        try:
            _append(self._path, line)
        except OSError as failure:
            raise WorldStateError(
                f"cannot note a damaged sample in {self._path}: {failure.strerror}; make room and run again"
            ) from failure
        self._known.add((shard, key))
        self.count += 1
        logger.warning("[event] quarantined %r at position %d: %s", key, position, error)

    def refuse_above_limit(self, count: int) -> None:
        """Raises ShardError where all ranks together have `count` samples, more than the run goes without."""
        self.total = count
        if count > self._limit:
            last = _last_line(self._path)
            raise ShardError(
                f"{count} damaged samples, {self._limit} are gone on without; {self._path} names them, "
                f"the last is {last}; mend the shards and remove that file, or raise "
                "--data.quarantine_max and --data.quarantine_share"
            )


def _append(path: Path, line: str) -> None:
    """Adds a line in one write, so that ranks do not interleave, after whatever half line is there.

    Another rank's write that is seen half done leaves an empty line, which readers pass over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        begin = "\n" if size and os.pread(descriptor, 1, size - 1) != b"\n" else ""
        os.write(descriptor, f"{begin}{line}\n".encode())
    finally:
        os.close(descriptor)


def _last_line(path: Path) -> str:
    lines = _lines(path)
    return f"{lines[-1]['key']!r} of {lines[-1]['shard']}" if lines else "unknown"


def _listed(path: Path) -> set[tuple[str, str]]:
    return {(line["shard"], line["key"]) for line in _lines(path)}


def _lines(path: Path) -> list[dict[str, str]]:
    """The whole lines of the file: a machine that lost power may have left half of one."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            content = json.loads(line)
            lines.append({name: str(content[name]) for name in ("key", "shard", "error")})
        except (ValueError, KeyError, TypeError):
            continue
    return lines
