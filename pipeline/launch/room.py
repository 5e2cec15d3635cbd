"""Room for an attempt: which nodes have how much of it now, and a bounded wait for enough."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import ray
from ray._private.state import available_resources_per_node, state

from pipeline.config import Config
from pipeline.errors import Preempted
from pipeline.launch.workers import Workers
from pipeline.launch.world_size import WorldRange, choose_world_size

logger = logging.getLogger(__name__)

SETTLE_S = 5.0
"""Longest to wait for more than the fewest ranks: CPUs of the attempt before come back within it, and a
node that is gone is known to be."""
POLL_S = 0.1


def free_ranks(each: Workers) -> int:
    """Ranks for which the nodes have free CPUs and GPUs; nodes that are being drained have none."""
    nodes: list[dict[str, object]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own
    usable = {node["NodeID"] for node in nodes if node["Alive"]} - set(state.get_draining_nodes())
    free = available_resources_per_node()  # type: ignore[no-untyped-call]  # Ray's own
    return sum(ranks_on(free[node], each) for node in usable if node in free)


def ranks_on(free: Mapping[str, float], each: Workers) -> int:
    """Ranks that fit a node with these free resources."""
    fits = int(free.get("CPU", 0.0) // each.cpus_each)
    return min(fits, int(free.get("GPU", 0.0))) if each.use_gpu else fits


def wait_for_room(
    config: Config, world: WorldRange, each: Workers, stop_wanted: Callable[[], bool],
    free: Callable[[Workers], int] = free_ranks,
) -> int:  # fmt: skip
    """The number of ranks to begin an attempt with: the most that may be, or after `SETTLE_S` fewer.

    Raises Preempted after a stop, and where there is no room for the fewest within
    `launch.workers_wait_s`: the same command goes on once there is.
    """
    largest = choose_world_size(config, world, world.most)
    begin_s, told = time.monotonic(), False
    while True:
        size = choose_world_size(config, world, free(each))
        waited_s = time.monotonic() - begin_s
        if size is not None and (size == largest or waited_s >= SETTLE_S):
            return size
        if stop_wanted():
            raise Preempted("stopped while waiting for workers; type the same again to go on")
        if waited_s >= config.launch.workers_wait_s:
            raise Preempted(
                f"no room for {world.least} workers within {config.launch.workers_wait_s}s: others hold the "
                "CPUs, or nodes are gone; type the same again to go on, or fewer --workers"
            )
        if waited_s >= SETTLE_S and not told:
            logger.info(
                "[event] waiting up to %ds for room for %d workers", config.launch.workers_wait_s, world.least
            )
            told = True
        time.sleep(POLL_S)
