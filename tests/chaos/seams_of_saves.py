"""Where rank 0 can be killed in a save, in an evaluation's record and in a line of the journal.

Wrappers around the shipped classes, put there in the process of the test: shipped code knows nothing of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.launch.run_context import JournaledContext
from pipeline.tracking.journal import Journal, Metrics, Record
from pipeline.train.checkpoint import COMMIT
from pipeline.train.checkpoint_folder import CheckpointFolder
from pipeline.train.context import SavePoint
from pipeline.train.metrics import VAL_MIOU
from tests.chaos.kill import Kill
from tests.chaos.points import SAVED_STEPS

FILES = 5
"""Files of a checkpoint that are put before COMMIT: three of tensors, the card, the state."""


class SaveSeams:
    """The seams of one process."""

    def __init__(self, kill: Kill) -> None:
        self.kill = kill
        self.saving = 0
        """Step of the save whose point was passed last."""

    def install(self) -> None:
        """Wrap the shipped methods."""
        self._marks()
        self._files()
        self._journal()

    def _marks(self) -> None:
        kill, mark, metrics = self.kill, JournaledContext.mark, JournaledContext.metrics

        def struck(context: JournaledContext, point: SavePoint, step: int) -> None:
            self.saving = step
            parts = 3 if point == "before_commit" else 2  # its last third is the rename
            wanted = kill.wants(point, step) and point != "write"  # whose places are the files
            if wanted and kill.part(parts) == 0:
                kill.hit("at the mark")
            mark(context, point, step)
            if wanted and kill.part(parts) == 1:
                kill.hit("past the mark")

        def scores_struck(context: JournaledContext, step: int, values: Mapping[str, float]) -> None:
            metrics(context, step, values)
            if VAL_MIOU in values and kill.wants("evaluate") and kill.part(4) != 3:
                kill.last_place("evaluate", "scores recorded")

        JournaledContext.mark, JournaledContext.metrics = struck, scores_struck

    def _files(self) -> None:
        kill, put, rename = self.kill, CheckpointFolder.put, Path.rename

        def struck(folder: CheckpointFolder, name: str, pieces: Any) -> None:
            wanted = kill.wants("write", self.saving) and len(folder._files) == kill.part(2 * FILES) // 2
            if wanted and kill.part(2 * FILES) % 2 == 0:
                whole = b"".join(bytes(piece) for piece in pieces)
                (folder.path / name).write_bytes(whole[: len(whole) // 2])
                kill.hit(f"half of {name}")
            put(folder, name, pieces)
            if wanted:
                kill.hit(f"past {name}")

        def struck_rename(path: Path, target: Path) -> Path:
            if Path(target).name == COMMIT and kill.wants("before_commit", self.saving):
                kill.hit("before the rename")
            return rename(path, target)

        CheckpointFolder.put, Path.rename = struck, struck_rename

    def _journal(self) -> None:
        """By thirds: a line is torn, a line is not flushed, the flush before a COMMIT is not over."""
        kill, append, flush = self.kill, Journal.append, Journal.flush

        def struck(journal: Journal, record: Record) -> None:
            wanted = isinstance(record, Metrics) and kill.wants("journal", record.step)
            third = kill.part(3) if wanted else -1
            if third == 0:
                os.write(journal._file.fileno(), b'{"kind":"metrics","step":')
                kill.hit("half a line")
            append(journal, record)
            if third == 1 or (third == 2 and record.step not in SAVED_STEPS):
                kill.hit("a line written")

        def struck_flush(journal: Journal) -> None:
            if kill.wants("journal", self.saving):
                kill.hit("before the flush")
            flush(journal)

        Journal.append, Journal.flush = struck, struck_flush
