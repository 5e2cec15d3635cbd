"""Where a rank can be killed while it waits for data, and where it kills a process that reads for it.

Wrappers around the shipped classes, put there in the process of the test: shipped code knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.data.crop_writer import Cost, CropWriter
from pipeline.data.tasks import Reply, Task
from pipeline.data.worker_pool import WorkerPool
from pipeline.launch.run_context import JournaledContext
from pipeline.train.context import Phase
from tests.chaos.kill import Kill
from tests.chaos.points import BATCH, LOADER_WORKER

POOL_PLACES = 4
"""With loader workers: before the fetch, on both sides of the hand-over of tasks, in the wait for answers."""


class DataSeams:
    """The seams of one process."""

    def __init__(self, kill: Kill, pooled: bool) -> None:
        """`pooled` where other processes read for this rank."""
        self.kill, self.pooled = kill, pooled
        self.fetching = self.worker_struck = False

    def install(self) -> None:
        """Wrap the shipped methods."""
        self._phase()
        self._own_thread()
        self._pool()

    def _phase(self) -> None:
        kill, phase = self.kill, JournaledContext.phase

        @contextmanager
        def struck(context: JournaledContext, name: Phase) -> Iterator[None]:
            with phase(context, name):
                self.fetching = name == "data"
                if self.fetching and kill.wants("data"):
                    # Both sides of every crop that this rank makes for the step, where it makes them itself.
                    kill.count_down(POOL_PLACES if self.pooled else 1 + 2 * (BATCH // context.world.size))
                    kill.place("data", "before the fetch")
                yield
                self.fetching = False
                kill.last_place("data", "at its end")

        JournaledContext.phase = struck

    def _own_thread(self) -> None:
        kill, write = self.kill, CropWriter.write

        def struck(writer: CropWriter, *arguments: Any) -> Cost:
            kill.place("data", "before a crop")
            cost = write(writer, *arguments)
            kill.place("data", "a crop made")
            return cost

        CropWriter.write = struck

    def _pool(self) -> None:
        kill, submit, replies = self.kill, WorkerPool.submit, WorkerPool.replies

        def struck_submit(pool: WorkerPool, tasks: Sequence[Task]) -> None:
            kill.place("data", "before tasks are handed to workers")
            submit(pool, tasks)
            kill.place("data", "workers at work")
            if self.fetching and not self.worker_struck and kill.wants(LOADER_WORKER):
                busy = [seat for seat in pool._seats if seat.tasks]
                self.worker_struck = True
                kill.hit_other("with a batch to be made", busy[kill.part(len(busy))].process.pid)

        def struck_replies(pool: WorkerPool, wait: bool) -> list[Reply]:
            kill.place("data", "in the wait for workers")
            return replies(pool, wait)

        WorkerPool.submit, WorkerPool.replies = struck_submit, struck_replies
