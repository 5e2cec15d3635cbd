"""The private Ray head: who gets in, where it listens, and whom its end leaves alone."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from pipeline.launch.local_cluster import MARK, LocalCluster

pytestmark = pytest.mark.cluster


def test_nobody_gets_in_without_the_token(ray_head: LocalCluster) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{ray_head.jobs_address}/api/jobs/", timeout=10)
    assert refused.value.code in (401, 403)
    refused.value.close()
    wrong = urllib.request.Request(
        f"{ray_head.jobs_address}/api/jobs/", headers={"Authorization": f"Bearer {'0' * 64}"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(wrong, timeout=10)
    assert refused.value.code in (401, 403)
    refused.value.close()
    assert ray_head.call("GET", "/api/jobs/") is not None

    attempt = f"import ray; ray.init(address={ray_head.address!r}); print('got in')"
    right = Path(ray_head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    for token, gets_in in ((None, False), ("0" * 64, False), (right, True)):
        environment = {k: v for k, v in ray_head.environment.items() if not k.startswith("RAY_AUTH_")}
        environment |= {"HOME": str(ray_head.folder / "nobody")}
        if token:
            environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        done = subprocess.run(
            [sys.executable, "-c", attempt],
            env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert ("got in" in done.stdout) == (done.returncode == 0) == gets_in, done.stderr


def test_head_listens_to_this_machine_alone_and_its_token_is_private(ray_head: LocalCluster) -> None:
    token = Path(ray_head.environment["RAY_AUTH_TOKEN_PATH"])
    assert token.stat().st_mode & 0o777 == 0o600
    assert ray_head.folder.stat().st_mode & 0o777 == 0o700
    listening = [
        connection.laddr.ip
        for process in ray_head.processes()
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 3, "dashboard, GCS and raylet at least"
    assert set(listening) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_stopping_a_cluster_leaves_another_one_alone(ray_head: LocalCluster) -> None:
    before = {process.pid for process in ray_head.processes()}
    with LocalCluster(num_cpus=1) as other:
        assert other.environment[MARK] != ray_head.environment[MARK]
        folder = other.folder
    assert not folder.exists()
    assert {process.pid for process in ray_head.processes()} >= before - {
        pid for pid in before if not psutil.pid_exists(pid)
    }
    assert ray_head.call("GET", "/api/jobs/") is not None
