"""Saves a run behind its back: rank 0 copies the state at once, a thread of it writes the checkpoint.

It guarantees that at most one write is in flight, that all ranks wait for it in turns that are far shorter
than a collective's time-out, that the journal's `commit` event stands for a durable
COMMIT, that nothing is removed before that, and that a write that fails is heard of by all ranks: the
loop stops all of them at a step's end, as for a wish to stop, and `finish` gives the error to raise
together. What was committed before stays as it is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from pipeline.errors import PipelineError, WorldStateError, one_line
from pipeline.train import metrics
from pipeline.train.checkpoint import Score, checkpoint_folder, step_of
from pipeline.train.checkpoint_folder import CheckpointFolder, Content, attach_score
from pipeline.train.context import RunContext
from pipeline.train.host_copy import HostCopy
from pipeline.train.reduce import broadcast_object
from pipeline.train.retention import remove, superfluous

logger = logging.getLogger(__name__)

WAIT_S = 0.5
"""Longest that rank 0 waits for its writer before it tells the others so."""

Tensors = Mapping[str, Mapping[str, Tensor]]
"""File → name → tensor."""


class Saver:
    """Writes the checkpoints of one attempt, in their order; on ranks other than 0 it does nothing."""

    def __init__(self, run_dir: Path, context: RunContext, keep_last: int, restored: Path | None) -> None:
        """`restored` is the checkpoint that this attempt began from."""
        self._run_dir, self._context, self._keep_last = run_dir, context, keep_last
        self._newest = restored
        self._copy = HostCopy()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._jobs: list[Future[None]] = []
        self._problem: BaseException | None = None
        self._told = False
        if restored and context.world.is_main:  # what an attempt that was killed did not get to
            self._submit(partial(self._prune, step_of(restored)))

    @property
    def failed(self) -> bool:
        """Whether a write has failed; nothing is written after that."""
        return self._problem is not None

    def holds(self, step: int) -> bool:
        """Whether a checkpoint of that step is there or on its way."""
        return self._newest is not None and step_of(self._newest) == step

    def save(self, tensors: Tensors, content: Content) -> float:
        """Take the tensors as they are, to be written with the rest of `content`.

        Returns the seconds that training stood still, which includes the wait for the save before, and
        records them. Raises nothing for a disk that refuses: see `finish`. A collective.
        """
        begin_s, step = time.perf_counter(), content.card.step
        self._newest = checkpoint_folder(self._run_dir, step, self._context.attempt)
        self._settle()
        if not self._context.world.is_main:
            return 0.0
        if self.failed:
            return 0.0
        self._context.mark("snapshot", step)
        self._copy.take(tensors)
        stall_s = time.perf_counter() - begin_s
        # Recorded before the write begins: its COMMIT covers what the journal has by then.
        self._context.metrics(step, {metrics.CHECKPOINT_STALL_S: stall_s})
        self._submit(partial(self._write, CheckpointFolder(self._newest), content))
        return stall_s

    def note_score(self, score: Score) -> None:
        """Attach the score of the newest checkpoint's weights, once it is committed."""
        if self._newest and self._context.world.is_main:
            self._submit(partial(self._attach, self._newest, score))

    def finish(self) -> PipelineError | None:
        """Wait for all that is under way; what went wrong, for all ranks to raise together. A collective.

        Raises, on this rank alone, whatever is a bug.
        """
        self._settle()
        self._told = True
        if self._problem is None or isinstance(self._problem, PipelineError):
            return self._problem
        raise self._problem

    def close(self) -> None:
        """Wait for all that is under way, also after an error of training."""
        with self._context.phase("finish"):  # whatever phase the error came in, which may be one of seconds
            self._executor.shutdown()
        if self._problem and not self._told:
            logger.warning("[event] the last checkpoint was not written: %s", one_line(self._problem))

    def _settle(self) -> None:
        """Wait, on all ranks, until nothing is under way on rank 0; however long that takes.

        Ranks that met rank 0 only afterwards would be ended by the time-out of their collective.
        """
        done = False
        while not done:
            done = broadcast_object(not wait(self._jobs, WAIT_S).not_done, self._context.world)
        self._jobs.clear()

    def _submit(self, job: Callable[[], None]) -> None:
        self._jobs.append(self._executor.submit(self._run, job))

    def _run(self, job: Callable[[], None]) -> None:
        if self._problem is not None:
            return
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - raised by `finish`, in the thread that trains
            self._problem = error

    def _write(self, folder: CheckpointFolder, content: Content) -> None:
        begin_s, step, context = time.perf_counter(), content.card.step, self._context
        try:
            context.mark("write", step)
            folder.put_all(replace(content, tensors=self._copy.pieces()))
            context.mark("before_commit", step)
            folder.commit(context.attempt)
        except FileNotFoundError as error:
            raise WorldStateError(
                f"the unfinished checkpoint {folder.path} was cleared away while it was written, as a later "
                "attempt does; nothing of this one counts any more"
            ) from error
        except OSError as error:
            folder.discard()
            raise _refused(folder.path, error) from error
        except PipelineError:
            folder.discard()
            raise
        context.mark("after_commit", step)
        seconds = round(time.perf_counter() - begin_s, 3)
        context.event(
            "commit", step, checkpoint=folder.path.name, seconds=seconds, megabytes=folder.num_bytes / 1e6
        )
        self._prune(step)
        context.mark("saved", step)

    def _prune(self, step: int) -> None:
        for folder in superfluous(self._run_dir, self._keep_last):
            self._context.mark("prune", step)
            try:
                remove(folder)
            except OSError as error:
                raise _refused(folder, error) from error

    def _attach(self, folder: Path, score: Score) -> None:
        self._context.mark("score", step_of(folder))
        try:
            attach_score(folder, score)
        except OSError as error:
            raise _refused(folder, error) from error
        self._prune(step_of(folder))  # it may have a new best beside it
        self._context.mark("saved", step_of(folder))


def _refused(folder: Path, error: OSError) -> WorldStateError:
    return WorldStateError(
        f"cannot write the checkpoint {folder}: {error.strerror or error}; make room or take another "
        "--runs, then run the same command again to go on from the newest whole checkpoint"
    )
