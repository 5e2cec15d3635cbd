"""Jobs whose tracking server comes and goes, and which are killed and stopped while it is away."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.launch.local_cluster import LocalCluster
from pipeline.tracking.journal import Event, Metrics, read_journal
from tests.mlflow_server import TrackingServer, tracking_server, until

pytestmark = pytest.mark.cluster
OUTAGE_S = float(os.environ.get("CCS_TEST_OUTAGE_S", "2"))
"""How long the server is away in the middle of the job; 60 for the figure that is published."""
STEPS = 820 + round(40 * OUTAGE_S)
"""More than two ranks do meanwhile, so that the job is not over before the server is back."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrackingServer]:
    with tracking_server(tmp_path / "server") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
        yield server


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
    server: TrackingServer, start_job, ray_environment: dict[str, str], ray_head: LocalCluster,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run_dir = tmp_path / "runs" / "away"
    words = [
        "--name",
        "away",
        "--workers",
        "2",
        "--train.steps",
        str(STEPS),
        "--train.checkpoint_every",
        "20",
    ]
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
    assert (result["status"], result["step"]) == ("ok", STEPS), job.text
    assert "type the same with --name away again to ship them" in job.text
    time.sleep(OUTAGE_S)

    server.start()
    job = start_job(*words)
    assert job.result()["status"] == "ok"
    assert "finished already" in job.text
    expected = recorded(run_dir)
    assert expected["train/loss"] == list(range(2, STEPS + 1, 2))
    assert history(server.uri, "away") == expected, "none lost, none twice"
