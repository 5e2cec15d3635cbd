"""Shards brought to the node ahead of their use, by a few threads of each process."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pipeline.data.shard_table import index_name
from pipeline.data.store.cache import ShardCache
from pipeline.data.store.fetcher import PART_BYTES, Fetcher
from pipeline.errors import PipelineError, ShardError, WorldStateError, without_credentials

if TYPE_CHECKING:
    from pipeline.data.shard_table import ShardEntry

logger = logging.getLogger(__name__)

Outcome = Literal["here", "no room", "elsewhere", "stopped"]
"""How a download ended; `elsewhere`: another process of the node is at it."""

_LOOK_AGAIN_S = 0.1
_TRIES = 2
"""Downloads of a shard whose bytes are not the manifest's, before that is believed."""


def bring(
    cache: ShardCache,
    fetcher: Fetcher,
    url: str,
    shard: ShardEntry,
    stopped: Callable[[], bool],
    keep_since_s: float = math.inf,
) -> Outcome:
    """How it ended; raises a PipelineError where shard or index cannot be had, or are not the manifest's.

    No shard that was used since `keep_since_s` is given up for it.
    """
    try:
        outcome = _bring(cache, fetcher, url, shard, stopped, keep_since_s)
        if outcome == "here":  # only then: the index of a shard that is read over the network helps nobody
            index = url.removesuffix(shard.name) + index_name(shard.name)
            outcome = _bring_index(cache, fetcher, index, shard.index_sha256, keep_since_s)
        return outcome
    except OSError as error:
        raise WorldStateError(
            f"cannot keep {without_credentials(url)} in {cache.folder}: {error.strerror}; make room there, "
            "or type --data.store.cache_dir and another folder"
        ) from error


def _bring(
    cache: ShardCache,
    fetcher: Fetcher,
    url: str,
    shard: ShardEntry,
    stopped: Callable[[], bool],
    keep_since_s: float,
) -> Outcome:
    with cache.claimed(url) as mine:
        if cache.holds(url, shard.sha256, shard.bytes):
            return "here"
        if not mine:
            return "elsewhere"
        for _ in range(_TRIES):
            incoming = cache.begin(url, shard.sha256, shard.bytes, keep_since_s)
            if incoming is None:
                return "no room"
            try:
                for offset in range(0, shard.bytes, PART_BYTES):
                    if stopped():
                        return "stopped"
                    incoming.add(fetcher.range(url, offset, min(PART_BYTES, shard.bytes - offset)))
                if incoming.keep():
                    return "here"
            finally:
                incoming.discard()
    raise ShardError(
        f"{without_credentials(url)} is not the shard that the manifest lists (sha256 differs); "
        "copy the shard there again or pack again"
    )


def _bring_index(cache: ShardCache, fetcher: Fetcher, url: str, sha256: str, keep_since_s: float) -> Outcome:
    """As `_bring`, of a small file whose size no manifest tells."""
    with cache.claimed(url) as mine:
        if cache.whole(url, sha256) is not None:
            return "here"
        if not mine:
            return "elsewhere"
        for _ in range(_TRIES):
            data = fetcher.whole(url)
            incoming = cache.begin(url, sha256, len(data), keep_since_s)
            if incoming is None:
                return "no room"
            try:
                incoming.add(data)
                if incoming.keep():
                    return "here"
            finally:
                incoming.discard()
    raise ShardError(
        f"{without_credentials(url)} is not the index that the manifest lists (sha256 differs); "
        "copy the index there again or pack again"
    )


class Downloads:
    """Announced shards, downloaded in their order. Its threads are few, and end with `close`."""

    def __init__(self, cache: ShardCache, fetcher: Fetcher, num_threads: int) -> None:
        self._cache = cache
        self._fetcher = fetcher
        self._num_threads = num_threads
        self._waiting: dict[str, ShardEntry] = {}
        self._running: set[str] = set()
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._closed = False

    def announce(self, url: str, shard: ShardEntry) -> None:
        """Download a shard when its turn comes; nothing for one that waits already.

        One that is being downloaded is looked at again, as its copy may have been dropped meanwhile.
        """
        with self._changed:
            if self._closed:
                return
            self._waiting.setdefault(url, shard)
            if len(self._threads) < self._num_threads:
                thread = threading.Thread(target=self._work, name="shard-download", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()

    def close(self) -> None:
        """End the threads, each after the request that it waits for."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=1.0)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            url, shard = job
            outcome: Outcome | None = None
            try:
                outcome = bring(self._cache, self._fetcher, url, shard, lambda: self._closed)
            except PipelineError as error:
                # Whoever reads the shard asks the server for itself, and meets the same with a name to it.
                logger.warning("[store] not downloaded: %s", error)
            with self._changed:
                self._running.discard(url)
                if outcome == "elsewhere" and not self._closed:
                    self._waiting.setdefault(url, shard)  # seen to again, should the other process be killed
                    self._changed.wait(_LOOK_AGAIN_S)

    def _next(self) -> tuple[str, ShardEntry] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._due() is not None)
            url = self._due()
            if self._closed or url is None:
                return None
            self._running.add(url)
            return url, self._waiting.pop(url)

    def _due(self) -> str | None:
        """The first that waits and that no thread is at."""
        return next((url for url in self._waiting if url not in self._running), None)
