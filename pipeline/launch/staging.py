"""Shards on every node's disk before a worker holds a GPU: those that training begins with.

A task without CPU or GPU of its own runs on each node that may get workers. What comes later is
downloaded while the workers train, ahead of its use; a node that joins late, or has no room, reads
ranges over the network meanwhile.
"""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import Config
from pipeline.data.dataset import open_splits
from pipeline.data.staging import Staged, first_shards, stage_shards
from pipeline.data.store.address import is_address
from pipeline.errors import PipelineError
from pipeline.launch.stop_signals import StopSignals
from pipeline.launch.workers import Workers
from pipeline.settings import from_dict, to_dict
from pipeline.tracking.journal import committed_step, read_journal

logger = logging.getLogger(__name__)


def stage_on_nodes(
    config: Config, shards: str, run_dir: Path, workers: Workers, signals: StopSignals
) -> None:
    """Bring the first shards to each node that may get workers; raises what the store says of them.

    Nothing for a folder. Returns early where a stop is asked for.
    """
    if not is_address(shards):
        return
    needed = {"GPU": 1} if workers.use_gpu else {"CPU": 1}
    everything = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own
    nodes = [
        node["NodeID"]
        for node in everything
        if node["Alive"] and all(node["Resources"].get(name, 0) >= few for name, few in needed.items())
    ]
    position = committed_step(read_journal(run_dir)) * config.train.batch_global
    task = ray.remote(num_cpus=0, max_retries=0)(_stage)
    waiting = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote(
            to_dict(config), shards, position, workers.num
        )
        for node in nodes
    ]
    while waiting and not signals.stop_wanted():
        ready, waiting = ray.wait(waiting, timeout=0.2)
        for answer in ready:
            try:
                _tell(ray.get(answer))
            except RayTaskError:
                raise  # not the node's fault, but a bug
            except RayError as error:  # its workers, if any, will read over the network
                logger.warning("[stage] a node was lost while shards were brought to it (%s)", error)
    for answer in waiting:
        ray.cancel(answer, force=True)


def _tell(answer: tuple[str, Staged | PipelineError]) -> None:
    """Log what a node has; raises what stopped it."""
    host, staged = answer
    if isinstance(staged, PipelineError):
        raise staged
    rest = f", no room for {staged.left_out} more" if staged.left_out else ""
    logger.info("[stage] %d shards, %.2f GB on %s%s", staged.shards, staged.bytes / 1e9, host, rest)


def _stage(
    settings: dict[str, Any], root: str, position: int, num_workers: int
) -> tuple[str, Staged | PipelineError]:
    """The node's name, and what it has then or what went wrong, as a value: Ray would wrap an error."""
    config = from_dict(settings)
    host = socket.gethostname()
    try:
        training, validation = open_splits(root, config.data)
        shards = first_shards(
            training,
            config.data,
            config.train.seed,
            config.train.batch_global,
            range(position, position + config.data.store.lookahead * num_workers),
        )
        # Each once: with unindexed shards, or one split for both, what is evaluated stands for training too.
        needed = list(dict.fromkeys([*shards, *validation.shards]))
        return host, stage_shards(root, needed, config.data.store)
    except PipelineError as error:
        return host, error
