"""A real tracking server that is not there at first, dies, and comes back: training never notices."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.config import Config
from pipeline.settings import flatten, to_dict
from pipeline.tracking.journal import Journal
from pipeline.tracking.mlflow_store import RunDescription
from pipeline.tracking.mlflow_sync import MlflowRun, ship_pending
from tests.faulty_proxy import Fault, FaultyProxy
from tests.mlflow_server import TrackingServer, tracking_server, until

pytestmark = pytest.mark.cluster


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrackingServer]:
    with tracking_server(tmp_path / "server") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        yield server


def describe(runs: Path) -> RunDescription:
    return RunDescription(runs, runs / "demo", "demo", "test", flatten(Config()), to_dict(Config()))


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
    server: TrackingServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path / "demo", "a")
    journal.event("start", 0)
    slowest_s = []

    def shipped(run: MlflowRun) -> int:
        return len(MlflowClient(server.uri).get_metric_history(run.run_id, "train/loss"))

    began_s = time.monotonic()
    run = MlflowRun.open(describe(tmp_path), wait_s=2, ship_every_s=0.1)  # nobody answers yet
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
    server: TrackingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
