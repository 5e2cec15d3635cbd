"""Room for an attempt: which nodes have how much of it now, and a bounded wait for enough."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import available_resources_per_node, state
from ray._raylet import ActorID, PlacementGroupID
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group

from pipeline.config import Config
from pipeline.errors import Preempted
from pipeline.launch.workers import Workers
from pipeline.launch.world_size import WorldRange, choose_world_size

_TABLE: Any = gcs_pb2  # made by a generator that writes no types
logger = logging.getLogger(__name__)

SETTLE_S = 5.0
"""Longest to wait for more than the fewest ranks, and shortest to wait for those: CPUs of the attempt before
come back within it, and a node that is gone is known to be."""
POLL_S = 0.1


@dataclass(frozen=True)
class Ranks:
    """How many ranks the nodes of a cluster can have."""

    free: int
    """With what is free now."""
    in_all: int
    """With all that the nodes have, whoever holds it now."""


def ranks_now(each: Workers) -> Ranks:
    """Ranks by the nodes' CPUs and GPUs; nodes that are being drained have none."""
    give_back_of_dead_controllers()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own
    draining = set(state.get_draining_nodes())
    usable = {node["NodeID"]: node["Resources"] for node in nodes if node["Alive"]}
    free = available_resources_per_node()  # type: ignore[no-untyped-call]  # Ray's own
    return Ranks(
        sum(ranks_on(free[node], each) for node in usable if node in free and node not in draining),
        sum(ranks_on(has, each) for node, has in usable.items() if node not in draining),
    )


def ranks_on(resources: Mapping[str, float], each: Workers) -> int:
    """Ranks that fit a node with these resources."""
    fits = int(resources.get("CPU", 0.0) // each.cpus_each)
    return min(fits, int(resources.get("GPU", 0.0))) if each.use_gpu else fits


def give_back_of_dead_controllers() -> None:
    """Free what placement groups of this job hold whose maker is dead; Ray would keep them to the job's end.

    A controller of Ray Train that dies before a rank of its gave a sign of life leaves one that nobody
    else knows of. Those that the driver made, as Ray Tune does, have no actor for a maker and stay.
    """
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    for content in state._connect_and_get_accessor().get_placement_group_table():
        group = _TABLE.PlacementGroupTableData.FromString(content)
        removed = group.state == _TABLE.PlacementGroupTableData.REMOVED
        by_actor = bool(group.creator_actor_id) and not ActorID(group.creator_actor_id).is_nil()
        if group.creator_job_id == job and by_actor and group.creator_actor_dead and not removed:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


def wait_for_room(
    config: Config, world: WorldRange, each: Workers, stop_wanted: Callable[[], bool],
    look: Callable[[Workers], Ranks] = ranks_now,
) -> int:  # fmt: skip
    """The number of ranks to begin an attempt with: the most that the nodes can have, after `SETTLE_S` fewer.

    Raises Preempted after a stop, which begins nothing, and where there is no room for the fewest within
    `launch.workers_wait_s`: the same command goes on once there is.
    """
    begin_s, told = time.monotonic(), False
    longest_s = max(config.launch.workers_wait_s, SETTLE_S)
    while True:
        if stop_wanted():  # also where there is room: an attempt hears of it after its start alone
            raise Preempted("stopped before workers began; type the same again to go on")
        ranks = look(each)
        size = choose_world_size(config, world, ranks.free)
        waited_s = time.monotonic() - begin_s
        if size is not None and (
            waited_s >= SETTLE_S or size == choose_world_size(config, world, ranks.in_all)
        ):
            return size
        if waited_s >= longest_s:
            raise Preempted(
                f"no room for {world.least} workers within {longest_s:.0f}s: others hold the "
                "CPUs, or nodes are gone; type the same again to go on, or fewer --workers"
            )
        if waited_s >= SETTLE_S and not told:
            logger.info("[event] waiting up to %.0fs for room for %d workers", longest_s, world.least)
            told = True
        time.sleep(POLL_S)
