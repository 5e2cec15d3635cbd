"""A real tracking server that is not there at first, dies, and comes back: training never notices."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.config import Config
from pipeline.launch.local_cluster import LocalCluster
from pipeline.settings import flatten, to_dict
from pipeline.tracking.journal import Event, Journal, Metrics, read_journal
from pipeline.tracking.mlflow_store import RunDescription
from pipeline.tracking.mlflow_sync import MlflowRun, ship_pending
from tests.faulty_proxy import Fault, FaultyProxy

pytestmark = pytest.mark.cluster
OUTAGE_S = float(os.environ.get("CCS_TEST_OUTAGE_S", "2"))
"""How long the server is away in the middle of the job; 60 for the figure that is published."""


class Server:
    """An `mlflow server` on loopback that can be killed and started again on the same port and data."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
            "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
            "--artifacts-destination", str(self.folder / "artifacts"), "--workers", "1",
        ]  # fmt: skip
        quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | quiet
        self.process = subprocess.Popen(
            command, cwd=self.folder, env=environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        end = time.monotonic() + 90
        while True:
            assert self.process.poll() is None, "the server did not start"
            assert time.monotonic() < end, "the server is not up"
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL the server and the worker that it started: its own session, nobody else's."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    server = Server(tmp_path / "server")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    yield server
    server.kill()


def describe(runs: Path) -> RunDescription:
    return RunDescription(runs, runs / "demo", "demo", "test", flatten(Config()), to_dict(Config()))


def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def train(journal: Journal, first: int, last: int) -> float:
    """Record steps and commit the last; the seconds that the slowest record took."""
    slowest_s = 0.0
    for step in range(first, last + 1):
        began_s = time.perf_counter()
        journal.metrics(step, {"train/loss": 1.0 / step, "train/lr": 0.1})
        slowest_s = max(slowest_s, time.perf_counter() - began_s)
        time.sleep(0.002)
    journal.event("commit", last)
    return slowest_s


def test_no_point_is_lost_or_doubled_while_the_server_comes_and_goes(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "demo", "a")
    journal.event("start", 0)
    slowest_s = []

    def shipped(run: MlflowRun) -> int:
        return len(MlflowClient(server.uri).get_metric_history(run.run_id, "train/loss"))

    began_s = time.monotonic()
    run = MlflowRun.open(describe(tmp_path), wait_s=10, ship_every_s=0.1)  # nobody answers yet
    assert time.monotonic() - began_s < 12
    assert run.run_id is None
    slowest_s.append(train(journal, 1, 50))
    server.start()
    until(lambda: run.run_id is not None)
    until(lambda: shipped(run) == 50)
    slowest_s.append(train(journal, 51, 100))
    server.kill()  # perhaps in the middle of a request
    slowest_s.append(train(journal, 101, 200))
    time.sleep(0.5)
    server.start()
    until(lambda: shipped(run) == 200)
    slowest_s.append(train(journal, 201, 220))
    server.kill()
    slowest_s.append(train(journal, 221, 250))
    began_s = time.monotonic()
    (tmp_path / "demo" / "report.html").write_text("<p>report")
    run.add_artifact(tmp_path / "demo" / "report.html")
    pending = run.finish("FINISHED", timeout_s=2)  # nobody answers at the end
    assert time.monotonic() - began_s < 4
    assert pending is not None
    assert "points" in pending
    assert "type the same with --name demo again to ship them" in pending
    journal.close()
    assert max(slowest_s) < 1.0, "a step waited for a server"

    server.start()
    assert ship_pending(tmp_path / "demo", timeout_s=60) is None
    client = MlflowClient(server.uri)
    again, *others = client.search_runs([client.get_experiment_by_name("test").experiment_id])
    assert not others, "one run, however often the server was away"
    for key in ("train/loss", "train/lr"):
        steps = [m.step for m in client.get_metric_history(again.info.run_id, key)]
        assert steps == list(range(1, 251)), key
    assert again.info.status == "FINISHED"
    files = {f.path for f in client.list_artifacts(again.info.run_id)}
    assert files >= {"config.json", "journal", "report.html"}
    assert ship_pending(tmp_path / "demo") is None, "nothing is owed twice"
    assert not list((tmp_path / "demo").glob("mlflow-pending*"))
    warnings = [r for r in caplog.records if "out of reach" in r.getMessage()]
    assert 2 <= len(warnings) <= 4, "one warning an outage, not one a try"


class LateProxy(FaultyProxy):
    """A network on which batches of metrics arrive although the client hears nothing, in two ways."""

    def __init__(self, upstream: str, timeout_s: float) -> None:
        super().__init__(upstream, faults=False)
        self._timeout_s = timeout_s
        self.landed_unheard = 0

    def next_fault(self, method: str, path: str, asked: str) -> Fault:
        fault = super().next_fault(method, path, asked)
        if not path.endswith("/log-batch"):
            return fault
        number = sum(seen.path.endswith("/log-batch") for seen in self.seen)
        if number in (2, 3, 7):  # the answer is cut, and never comes whole
            self.landed_unheard += 1
            return "stall"
        if number in (5, 8):  # it arrives once the client has given up, and perhaps asked what is there
            self.landed_unheard += 1
            time.sleep(1.5 * self._timeout_s)
        return fault


def test_batches_that_landed_though_the_client_gave_up_are_there_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    proxy = LateProxy(f"127.0.0.1:{server.port}", timeout_s=2)
    journal = Journal(tmp_path / "demo", "a")
    journal.event("start", 0)
    with proxy.running():
        monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.url)
        run = MlflowRun.open(describe(tmp_path), wait_s=60, ship_every_s=0.1)
        for part in range(6):
            train(journal, 10 * part + 1, 10 * part + 10)
            time.sleep(1)
        assert run.finish("FINISHED", timeout_s=120) is None
    journal.close()
    assert proxy.landed_unheard >= 4
    time.sleep(3)  # what is still on its way arrives
    client = MlflowClient(server.uri)
    for key in ("train/loss", "train/lr"):
        steps = [m.step for m in client.get_metric_history(run.run_id, key)]
        assert steps == list(range(1, 61)), key


def history(uri: str, name: str) -> dict[str, list[int]]:
    """Metric → its steps as MLflow has them, of the one run of that name; system metrics left out."""
    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(experiments, f"tags.`ccs.run_name` = '{name}'")
    keys = [key for key in run.data.metrics if not key.startswith("system/")]
    return {key: sorted(m.step for m in client.get_metric_history(run.info.run_id, key)) for key in keys}


def recorded(run_dir: Path) -> dict[str, list[int]]:
    """Metric → its steps as the journal has them."""
    steps: dict[str, list[int]] = {}
    for record in read_journal(run_dir):
        for key in record.values if isinstance(record, Metrics) else ():
            steps.setdefault(key, []).append(record.step)
    return {key: sorted(set(found)) for key, found in steps.items()}


def test_whatever_ended_a_job_while_the_server_was_away_the_same_words_ship_what_it_lacks(
    server: Server, start_job, ray_environment: dict[str, str], ray_head: LocalCluster, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run_dir = tmp_path / "runs" / "away"
    words = ["--name", "away", "--workers", "2", "--train.steps", "900", "--train.checkpoint_every", "20"]
    words += ["--train.evaluate_every", "300", "--register", "", "--tracking.wait_s", "2"]
    for name, value in (("MLFLOW_TRACKING_URI", server.uri), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")):
        monkeypatch.setitem(ray_environment, name, value)

    def commits() -> int:
        return sum(isinstance(r, Event) and r.name == "commit" for r in read_journal(run_dir))

    def committed_more(job) -> None:
        reached = commits()
        job.wait_until(lambda: commits() >= reached + 2)

    server.start()
    job = start_job(*words)
    committed_more(job)
    server.kill()
    committed_more(job)
    time.sleep(OUTAGE_S)  # in the middle: it comes back, and all is there while the job goes on or soon after
    server.start()
    committed_more(job)
    server.kill()
    committed_more(job)
    job.process.kill()  # the driver dies while the server is away
    job.process.wait()

    job = start_job(*words)  # begins without a server, too
    committed_more(job)
    job.process.send_signal(signal.SIGTERM)
    assert job.result()["exit_code"] == 75, job.text
    assert "type the same with --name away again to ship them" in job.text

    server.start()
    job = start_job(*words)
    until(lambda: bool(history(server.uri, "away").get("train/loss")))
    committed_more(job)
    server.kill()
    result = job.result()
    assert (result["status"], result["step"]) == ("ok", 900), job.text
    assert "type the same with --name away again to ship them" in job.text
    time.sleep(OUTAGE_S)

    server.start()
    job = start_job(*words)
    assert job.result()["status"] == "ok"
    assert "finished already" in job.text
    expected = recorded(run_dir)
    assert expected["train/loss"] == list(range(2, 901, 2))
    assert history(server.uri, "away") == expected, "none lost, none twice"


def test_credentials_in_the_address_are_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@127.0.0.1:9/base")
    run = MlflowRun.open(describe(tmp_path), wait_s=30)
    pending = run.finish("FINISHED", timeout_s=0.1)
    assert run.tracking_uri == "http://127.0.0.1:9/base"
    assert pending is not None
    assert "secret" not in pending
    assert "secret" not in run.page
    assert "secret" not in caplog.text
    assert "out of reach" in caplog.text
