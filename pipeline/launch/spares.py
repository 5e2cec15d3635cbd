"""Warm processes in reserve, so that a restart starts and imports nothing.

Ray takes the process for an actor from its idle ones where job and environment are the same to the
letter. Such are ordered from each node's raylet by the call that Ray has for it, and load what they
will need by a hook of the job's environment (warm_up.py). Where the call fails, as through a Ray client,
there are none, and a restart takes longer.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
import psutil
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.utils import get_runtime_env_info
from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc
from ray.runtime_env import RuntimeEnv
from ray.train.v2._internal.constants import get_env_vars_to_propagate

from pipeline.launch.pulse import Place

_MESSAGES: Any = node_manager_pb2  # made by a generator that writes no types
_GRPC: Any = node_manager_pb2_grpc
logger = logging.getLogger(__name__)

TRAIN_ACTORS = 2
"""Actors of Ray Train on the driver's node: controller and synchronization."""
KEEP_S = 7 * 24 * 3600
"""Raylets end idle processes beyond their free CPUs after a second otherwise."""
CALM_S = 5.0
"""Training before the first are ordered: a job of some seconds shall not pay for them."""
AT_A_TIME = 2
"""Processes that start at once: a raylet drops what is ordered beyond its number of CPUs."""
CALL_S = 5.0
START_S = 60.0
POLL_S = 0.5
IDLE_TITLE = "ray::IDLE"


class Spares:
    """Keeps as many processes in reserve as the next attempt will take; its work is done in a thread."""

    def __init__(self) -> None:
        context = ray.get_runtime_context()
        self._here = context.get_node_id()
        job = context.get_runtime_env_string()  # type: ignore[no-untyped-call]  # Ray's own
        self._environment = _merged(job, get_env_vars_to_propagate())
        self._ordered: dict[str, set[int]] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def fill(self, ranks: Iterable[Place]) -> None:
        """Order what is missing, in the background; `ranks` are at work."""
        self._thread = threading.Thread(target=self._fill, args=(list(ranks),), name="spares", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """Order nothing more: an attempt ended, and what is there is being taken."""
        if self._thread:
            self._stop.set()
            self._thread.join()
            self._stop.clear()
            self._thread = None

    def _fill(self, ranks: list[Place]) -> None:
        if not self._ordered and self._stop.wait(CALM_S):
            return
        try:
            for node in {self._here} | {place.node for place in ranks}:
                busy = {place.pid for place in ranks if place.node == node}
                self._order(node, len(busy) + (TRAIN_ACTORS if node == self._here else 0), busy)
        except (grpc.RpcError, StopIteration) as error:
            logger.debug("no processes in reserve (%s)", error)

    def _order(self, node: str, wanted: int, busy: set[int]) -> None:
        """Order from one node's raylet what it lacks, as many at once as it starts."""
        raylet = _Raylet(node)
        idle = (self._ordered.get(node, set()) & raylet.processes()) - busy
        if node == self._here:
            idle = {pid for pid in idle if _is_idle(pid)}
        while (missing := wanted - len(idle)) > 0 and not self._stop.is_set():
            fresh = self._start(raylet, min(missing, AT_A_TIME))
            if not fresh:
                break
            idle |= fresh
        self._ordered[node] = idle

    def _start(self, raylet: _Raylet, count: int) -> set[int]:
        """Order `count` processes; the ids of those that came before the time, or `pause`, ended the wait."""
        before = raylet.processes()
        raylet.start(self._environment, count)
        fresh: set[int] = set()
        give_up_s = time.monotonic() + START_S
        while len(fresh) < count and time.monotonic() < give_up_s and not self._stop.wait(POLL_S):
            fresh = raylet.processes() - before
        return fresh


class _Raylet:
    """Ray's agent of one node. Raises grpc.RpcError where it does not answer, StopIteration without one."""

    def __init__(self, node: str) -> None:
        nodes = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's own
        at = next(found for found in nodes if found["NodeID"] == node and found["Alive"])
        channel = init_grpc_channel(f"{at['NodeManagerAddress']}:{at['NodeManagerPort']}")
        self._stub: Any = _GRPC.NodeManagerServiceStub(channel)

    def processes(self) -> set[int]:
        """The ids of all worker processes that have registered, of all jobs."""
        return set(self._stub.GetWorkerPIDs(_MESSAGES.GetWorkerPIDsRequest(), timeout=CALL_S).pids)

    def start(self, environment: str, count: int) -> None:
        """Start idle processes that only actors of this job and environment are given."""
        request = _MESSAGES.PrestartWorkersRequest(
            job_id=bytes.fromhex(ray.get_runtime_context().get_job_id()),
            keep_alive_duration_secs=KEEP_S,
            num_workers=count,
        )
        info = get_runtime_env_info(RuntimeEnv.deserialize(environment))
        request.runtime_env_info.ParseFromString(info.SerializeToString())
        request.runtime_env_info.serialized_runtime_env = environment
        self._stub.PrestartWorkers(request, timeout=CALL_S)


def _merged(environment: str, variables: Mapping[str, str]) -> str:
    """A runtime environment with more variables, spelt as Ray's core spells it for a child."""
    content = json.loads(environment or "{}")
    content["env_vars"] = content.get("env_vars", {}) | dict(variables)
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _is_idle(pid: int) -> bool:
    """Whether a worker process of this machine waits for work, by the title that Ray gives it."""
    try:
        return psutil.Process(pid).cmdline()[:1] == [IDLE_TITLE]
    except psutil.Error:
        return False
