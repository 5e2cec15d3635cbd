"""The indexes of a split that are in use, read ahead where that means a request over a network."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress

from pipeline.data.index import SampleEntry
from pipeline.data.sample_table import SampleTable
from pipeline.errors import PipelineError

MAX_SAMPLES = 2**20
"""Lines that are kept, about 120 MB. The shards of all streams of a rank should fit, as they are used in
turn: 64 of 16,000 samples each. Beyond that every sample costs the reading of an index, tens of ms."""
_THREADS = 4


class IndexCache:
    """Parsed indexes by shard, the ones used last; threads may share it."""

    def __init__(self, load: Callable[[int], Sequence[SampleEntry]], max_samples: int = MAX_SAMPLES) -> None:
        self._read, self._max_samples = load, max_samples
        self._kept: OrderedDict[int, SampleTable] = OrderedDict()
        self._num_samples = 0
        self._coming: dict[int, Future[SampleTable]] = {}
        self._waiting: deque[tuple[int, Future[SampleTable]]] = deque()
        self._num_threads = 0
        self._lock = threading.Lock()

    def get(self, shard: int) -> SampleTable:
        """The index of a shard; raises what loading it raises."""
        with self._lock:
            found, coming = self._kept.get(shard), self._coming.pop(shard, None)
            if found is not None:
                self._kept.move_to_end(shard)
                return found
        if coming is not None:
            with suppress(PipelineError):  # tried once more: whoever asks now is owed the error of now
                return self._keep(shard, coming.result())
        return self._keep(shard, self._load(shard))

    def prefetch(self, shard: int) -> None:
        """Begin to load an index that will be asked for; returns at once."""
        with self._lock:
            if shard in self._kept or shard in self._coming:
                return
            self._coming[shard] = Future()
            self._waiting.append((shard, self._coming[shard]))
            if self._num_threads < _THREADS:
                self._num_threads += 1
                # Not an executor's: a process that ends would wait for all of those, and for a silent server.
                threading.Thread(target=self._work, name="index", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._num_threads -= 1
                    return
                shard, coming = self._waiting.popleft()
            try:
                coming.set_result(self._load(shard))
            except BaseException as error:  # noqa: BLE001 - raised again by whoever asks
                coming.set_exception(error)

    def _load(self, shard: int) -> SampleTable:
        return SampleTable(self._read(shard))

    def _keep(self, shard: int, index: SampleTable) -> SampleTable:
        with self._lock:
            if shard not in self._kept:
                self._num_samples += len(index)
            self._kept[shard] = index
            while self._num_samples > self._max_samples and len(self._kept) > 1:
                _, dropped = self._kept.popitem(last=False)
                self._num_samples -= len(dropped)
        return index
