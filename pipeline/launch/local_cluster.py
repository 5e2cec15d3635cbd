"""A Ray cluster on this machine for one command: private, and gone without a trace when it ends.

Its ports are free ones, bound to the loopback address; nobody gets in without the token, which lies
in a folder that only this user may open. Whatever it started carries a mark in its environment, so
all of that is ended again, and nothing else: another Ray on the machine never notices.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch

from pipeline.errors import WorldStateError
from pipeline.launch.cluster_processes import (
    MARK,
    PREFIX,
    cluster_processes,
    end_processes,
    end_stale_clusters,
    job_processes,
    kill_processes,
    record_owner,
)

METRICS_PORTS = ("AUTOSCALER_METRIC_PORT", "DASHBOARD_METRIC_PORT")
"""Two more, which Ray takes from the environment."""
START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 5.0
LOOPBACK = "127.0.0.1"
PORTS = (
    "port", "dashboard-port", "node-manager-port", "object-manager-port", "ray-client-server-port",
    "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "runtime-env-agent-port",
    "metrics-export-port",
)  # fmt: skip
"""The ports of a head, each by the name of its flag; left to Ray, some are fixed numbers."""
MAX_TEMP_CHARACTERS = 36
"""Ray puts up to 70 characters behind its temporary folder, and a socket's path may have 107."""


class LocalCluster:
    """A Ray head with `num_cpus` CPUs, up for as long as the context is open."""

    def __init__(self, num_cpus: int) -> None:
        self.num_cpus = num_cpus
        self._mark = secrets.token_hex(8)
        self._token = secrets.token_hex(32)
        self._head: subprocess.Popen[bytes] | None = None
        self.folder = Path()
        self.environment: dict[str, str] = {}
        self._ports: dict[str, int] = {}

    def __enter__(self) -> LocalCluster:
        end_stale_clusters(Path(_short_temp()))
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_short_temp()))
        ports = dict(zip(PORTS + METRICS_PORTS, _free_ports(len(PORTS + METRICS_PORTS)), strict=True))
        self.environment = self._make_environment() | {name: str(ports.pop(name)) for name in METRICS_PORTS}
        self._ports = ports
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """The cluster's address for `ray.init`."""
        return f"{LOOPBACK}:{self._ports['port']}"

    @property
    def jobs_address(self) -> str:
        """The address for `ray job submit`."""
        return f"http://{LOOPBACK}:{self._ports['dashboard-port']}"

    def call(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - JSON
        """The JSON answer of the job server; raises OSError where it gives none."""
        request = urllib.request.Request(  # noqa: S310 - our own http address
            f"{self.jobs_address}{path}", method=method, headers={"Authorization": f"Bearer {self._token}"},
            data=None if content is None else json.dumps(content).encode(),
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310 - our own http address
            return json.loads(answer.read() or b"null")

    def submit(self, submission: str, code: Path, runtime_env: dict[str, Any], entrypoint: list[str]) -> None:
        """Submit a job by `ray job submit`; its working directory is a copy of `code`.

        Raises WorldStateError with Ray's words where it fails.
        """
        command = [*_ray(), "job", "submit", "--no-wait", "--submission-id", submission]
        command += ["--address", self.jobs_address, "--runtime-env-json", json.dumps(runtime_env)]
        command += ["--working-dir", str(code), "--", *entrypoint]
        done = subprocess.run(  # noqa: S603 - our own command
            command, env=self.environment, capture_output=True, text=True, stdin=subprocess.DEVNULL,
            check=False, start_new_session=True,
        )  # fmt: skip
        if done.returncode != 0:
            words = (done.stderr or done.stdout).strip().splitlines()
            raise WorldStateError(f"ray job submit failed: {words[-1] if words else 'without a word'}")

    def submit_again(self, submission: str, earlier: str, runtime_env: dict[str, Any]) -> None:
        """Submit an earlier job's command and code once more; raises OSError where the head does not answer.

        By the job server itself, which still has the code: Ray's command line takes 8 s on two busy cores.
        """
        before = self.call("GET", f"/api/jobs/{earlier}")
        code = {"working_dir": before["runtime_env"]["working_dir"]}
        job = {"entrypoint": before["entrypoint"], "submission_id": submission}
        self.call("POST", "/api/jobs/", job | {"runtime_env": runtime_env | code})

    def job_log(self, submission: str) -> Path:
        """The file that the job's output goes to."""
        return self._ray_folder / "session_latest" / "logs" / f"job-driver-{submission}.log"

    def head_lives(self) -> bool:
        """False once the head's process ended."""
        return self._head is not None and self._head.poll() is None

    @property
    def _ray_folder(self) -> Path:
        # Ray opens its temporary folder to everybody; the one around it stays closed.
        return self.folder / "r"

    def stop(self) -> None:
        """End everything that the cluster started, politely and then not, and remove its folder."""
        if self._head is not None and self.head_lives():
            self._head.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._head.wait(STOP_TIMEOUT_S)
        end_processes(self._mark, self._head_pid)
        if self._head is not None:
            self._head.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def abandon(self) -> None:
        """Kill everything that the cluster started: without its head nothing there can end well."""
        kill_processes(self.processes())

    def end_jobs(self) -> None:
        """Kill what jobs have left running: their drivers, and workers that are not idle."""
        kill_processes(job_processes(self._mark, self._head_pid))

    def processes(self) -> list[psutil.Process]:
        """All living processes that the cluster started, directly or not."""
        return cluster_processes(self._mark, self._head_pid)

    @property
    def _head_pid(self) -> int:
        return self._head.pid if self._head else -1

    def _make_environment(self) -> dict[str, str]:
        """The environment of this process, without another cluster's address, and with the token's file."""
        token_file = self.folder / "token"
        with os.fdopen(os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self._token)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return inherited | {
            MARK: self._mark,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Seconds that uploaded code stays although no job uses it: always, to submit a job again.
            "RAY_RUNTIME_ENV_TEMPORARY_REFERENCE_EXPIRATION_S": "1000000000",
            # Ray's name for "one machine only": without it, it replaces a loopback address by the
            # machine's own, and listens to the whole network.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    def _head_flags(self) -> list[str]:
        flags = [f"--{name}={port}" for name, port in self._ports.items()]
        flags += ["--min-worker-port=0", "--max-worker-port=0", f"--node-ip-address={LOOPBACK}"]
        flags += [
            "--include-dashboard=true",
            f"--dashboard-host={LOOPBACK}",
            f"--temp-dir={self._ray_folder}",
        ]
        # Samples never go through the object store; Ray would reserve a third of the memory.
        flags += [f"--num-cpus={self.num_cpus}", "--object-store-memory=100000000"]
        # Ray counts the machine's GPUs, which a CPU build of torch, or an old driver, cannot use.
        return flags if torch.cuda.is_available() else [*flags, "--num-gpus=0"]

    def _start(self) -> None:
        log = self.folder / "head.log"
        with log.open("wb") as output:
            self._head = subprocess.Popen(  # noqa: S603 - our own command
                [*_ray(), "start", "--head", "--block", "--disable-usage-stats", *self._head_flags()],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,  # Ctrl-C is ours to hear: the job checkpoints first
            )  # fmt: skip
        record_owner(self.folder, self._mark, self._head.pid)
        give_up_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._head.poll() is not None or time.monotonic() > give_up_s:
                words = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise WorldStateError(f"the local Ray head did not start: {' '.join(words)}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            self.call("GET", "/api/jobs/")
        except (OSError, ValueError):
            return False
        return True


def _ray() -> list[str]:
    """Ray's command line of this very environment."""
    return [sys.executable, "-m", "ray.scripts.scripts"]


def _short_temp() -> str:
    usual = tempfile.gettempdir()
    return usual if len(usual) <= MAX_TEMP_CHARACTERS - len("/ccs-12345678/r") else "/tmp"  # noqa: S108


def _free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different: each is held until the last is found."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for candidate in sockets:
            candidate.bind((LOOPBACK, 0))
        return [candidate.getsockname()[1] for candidate in sockets]
