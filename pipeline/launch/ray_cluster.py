"""The Ray cluster that a job runs on: joined where there is one, else a private one for the job alone."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.config import Config
from pipeline.data.store.address import is_address
from pipeline.errors import ConfigError, WorldStateError
from pipeline.launch.paths import inside_ray_job
from pipeline.launch.stop_signals import StopSignals
from pipeline.launch.workers import Room, Workers, plan_workers
from pipeline.launch.world_size import WorldRange

TRAIN_ENVIRONMENT = {
    # Seconds between two looks at the workers, and so the time until a dead one is noticed; 2 by default.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # A lost node shall cost half a minute of waiting for its return, not a whole one.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    # The driver looks for nodes that are to be taken away: one process less to start and to keep in reserve.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ray shows each print twice in a job's log otherwise.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # By default the controller alone has this, and no process in reserve would fit it.
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
    # Once per process and no more: these lines are repeated by every worker otherwise.
    "RAY_DEDUP_LOGS": "0",
}

PROCESS_ENVIRONMENT = {
    # Seconds that the survivors of a lost rank get to leave their process group; 30 by default.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
}
"""What Ray Train does not hand on to its controller by itself."""

TOKEN = secrets.token_hex(32)
"""Of all private clusters of this process: Ray reads the first one's, and goes by it to the end."""
PROBE_TIMEOUT_S = 5.0
"""Longest that a cluster's port may take to accept; Ray itself would try for minutes."""


def local_room() -> Room | None:
    """The most that a cluster of this process alone can have; None where another one is joined."""
    if os.environ.get("RAY_ADDRESS"):
        return None
    return Room(cpus=os.cpu_count() or 1, gpus=torch.cuda.device_count())


@contextmanager
def connected(worker_setup: str = "") -> Iterator[Room]:
    """The cluster's room, connected to it for as long as the context is open.

    `worker_setup` names a function that each worker process of the job runs first.

    RAY_ADDRESS is obeyed, which `ray job submit` sets. Without it a cluster of this process alone is
    started on this machine, closed to everybody without its token, and gone with the process.
    Raises WorldStateError where the address does not answer, ConfigError where it is none.
    """
    if os.environ.get("RAY_ADDRESS"):
        check_address(os.environ["RAY_ADDRESS"])
    for name, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not os.environ.get("RAY_ADDRESS"):
        # Ray reads these when it is imported; by default it would leave a token in the home folder.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = TOKEN
    import ray  # noqa: PLC0415 - after the environment that it reads, and after all cheap checks

    # In a job Ray itself carries the working directory to the workers; elsewhere they import this copy.
    root = Path(__file__).resolve().parents[2]
    variables = PROCESS_ENVIRONMENT | ({} if inside_ray_job() else {"PYTHONPATH": str(root)})
    environment = {"env_vars": variables} | (
        {"worker_process_setup_hook": worker_setup} if worker_setup else {}
    )
    address = os.environ.get("RAY_ADDRESS") or "local"
    try:
        ray.init(
            address=address,
            runtime_env=environment,
            log_to_driver=False,  # rank 0's lines are shown by the driver, bare and once
            logging_level=logging.WARNING,
            # Ray counts the machine's GPUs, which a CPU build of torch cannot use.
            num_gpus=0 if address == "local" and not torch.cuda.is_available() else None,
            include_dashboard=False if address == "local" else None,
        )
    except (ConnectionError, TimeoutError) as error:
        raise WorldStateError(f"no Ray cluster answers at RAY_ADDRESS={address}: {error}") from error
    try:
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's own
        yield Room(cpus=int(resources.get("CPU", 0)), gpus=int(resources.get("GPU", 0)))
    finally:
        ray.shutdown()


@contextmanager
def joined_workers(
    wanted: WorldRange | None, config: Config, worker_setup: str, signals: StopSignals
) -> Iterator[Workers]:
    """The workers that the cluster has room for, connected to it for as long as the context is open.

    Raises as `plan_workers` and `connected` do.
    """
    room_here = local_room()
    if room_here is not None:  # a head takes many seconds to start
        plan_workers(wanted, config, room_here)
    with connected(worker_setup) as room:
        signals.listen()
        yield plan_workers(wanted, config, room)


def check_address(address: str) -> None:
    """Raises WorldStateError where nothing listens at a cluster's address, ConfigError where it is none."""
    if address in ("auto", "local"):
        return  # Ray looks by itself, and is quick to say that there is none
    scheme, _, place = address.rpartition("://")
    host, _, port = place.partition("/")[0].rpartition(":")
    if scheme not in ("", "ray") or not host or not port.isdecimal() or int(port) not in range(1, 1 << 16):
        raise ConfigError(
            f"RAY_ADDRESS={address} is no address of a Ray cluster that a job can join; "
            "type HOST:PORT or ray://HOST:PORT (http://… is for `ray job submit` alone), or unset it"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_TIMEOUT_S).close()
    except OSError as error:
        raise WorldStateError(
            f"no Ray cluster answers at RAY_ADDRESS={address}: {error.strerror or error}; start it, or unset "
            "RAY_ADDRESS to train on this machine alone"
        ) from error


def check_shared(run_dir: Path, shards: str) -> None:
    """Raises WorldStateError where a node that may get workers does not see the run's folder or shards.

    A checkpoint on one node's own disk is lost with it, and another node would never find it.
    """
    import ray  # noqa: PLC0415 - only after `connected` has set the environment
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: PLC0415

    here = ray.get_runtime_context().get_node_id()
    probe = ray.remote(num_cpus=0)(_sees)
    needed = [str(run_dir / "lease")] + ([] if is_address(shards) else [shards])
    answers = {
        node["NodeManagerHostname"]: probe.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(needed)
        for node in _working_nodes()
        if node["NodeID"] != here
    }
    for host, answer in answers.items():
        missing = ray.get(answer)
        if missing:
            raise WorldStateError(
                f"node {host} does not see {missing[0]}: with more than one node --runs and --shards must be "
                "on a file system that all of them mount"
            )


def refuse_other_nodes(runs: str) -> None:
    """Raises WorldStateError where more than one node may get workers: they share no run's folder then."""
    num_nodes = len(_working_nodes())
    if num_nodes > 1:
        raise WorldStateError(
            f"--runs {runs} is for one node, and this cluster has {num_nodes}: heartbeats and wishes to stop "
            "go by files of the run's folder; type a --runs that all nodes mount"
        )


def _working_nodes() -> list[dict[str, Any]]:
    """The nodes that may get workers."""
    import ray  # noqa: PLC0415 - only after `connected` has set the environment

    everything = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own
    return [node for node in everything if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]


def _sees(paths: list[str]) -> list[str]:
    return [path for path in paths if not Path(path).exists()]
