"""A node that a cloud is about to take: all ranks checkpoint, and the job goes on without the node."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.tracking.journal import Event, Metrics, read_journal
from tests.dist.conftest import TINY, Job

pytestmark = pytest.mark.cluster
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64,
    "OMP_NUM_THREADS": "1",
}  # fmt: skip
TWO_NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
node = cluster.add_node(num_cpus=1, num_gpus=0)
cluster.wait_for_nodes()
print(cluster.address, node.node_id, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@contextmanager
def two_nodes() -> Iterator[tuple[str, str]]:
    """The address of a Ray cluster of two nodes of one CPU each, and the id of the second."""
    with subprocess.Popen(
        [sys.executable, "-c", TWO_NODES], env=ENVIRONMENT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as cluster:  # fmt: skip
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        address, node = cluster.stdout.readline().split()
        try:
            yield address, node
        finally:
            cluster.stdin.close()
            cluster.wait(60)


def events(run_dir: Path, name: str) -> list[Event]:
    return [r for r in read_journal(run_dir) if isinstance(r, Event) and r.name == name]


def test_job_checkpoints_and_goes_on_without_a_node_that_is_drained(
    city_shards: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "runs" / "drained"
    with two_nodes() as (address, node):
        command = [sys.executable, "jobs/train_cityscapes.py", "--shards", str(city_shards), *TINY]
        command += ["--runs", str(tmp_path / "runs"), "--name", "drained", "--workers", "1:2"]
        command += ["--train.steps", "400", "--train.checkpoint_every", "1000", "--register", ""]
        command += ["--train.evaluate_every", "1000", "--launch.max_failures", "0"]
        job = Job(command, ENVIRONMENT | {"RAY_ADDRESS": address}, tmp_path / "job.log")
        job.wait_until(lambda: any(isinstance(r, Metrics) for r in read_journal(run_dir)))
        drain = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", address]
        drain += ["--node-id", node, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        drain += ["--reason-message", "a notice", "--deadline-remaining-seconds", "120"]
        subprocess.run(drain, env=ENVIRONMENT, check=True, timeout=60)
        result = job.result()
    assert (result["status"], result["step"], result["restarts"]) == ("ok", 400, 1), job.text
    assert f"node {node[:12]} is to be taken away" in job.text
    assert "room for 1 workers, before 2" in job.text
    assert ", 0 steps repeated" in job.text
    (stop,) = events(run_dir, "stop")
    starts = events(run_dir, "start")
    assert [start.fields["world_size"] for start in starts] == [2, 1]
    assert (starts[1].step, starts[1].fields["position"]) == (stop.step, 4 * stop.step)
    curve = [r.step for r in read_journal(run_dir) if isinstance(r, Metrics) and "train/loss" in r.values]
    assert curve == list(range(2, 401, 2)), "each point once, none missing"
