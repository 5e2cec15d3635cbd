"""What MLflow has of a search, on a real sqlite store: one parent, a child a trial, whatever dies between."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from pipeline.config import Config
from pipeline.launch.search_tracking import SearchTracking, shortened
from pipeline.search.records import SearchRecord, from_json, to_json
from pipeline.settings import flatten, to_dict
from pipeline.tracking.journal import Journal
from pipeline.tracking.mlflow_store import RunDescription
from pipeline.tracking.mlflow_sync import MlflowRun, ship_pending
from tests.mlflow_server import until
from tests.searches import search

EXPERIMENT = "searches"
NUM = 6


@pytest.fixture(autouse=True)
def own_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for the module: making one takes seconds."""
    return tmp_path_factory.mktemp("runs")


def describe(runs_dir: Path, name: str) -> RunDescription:
    return RunDescription(
        runs_dir,
        runs_dir / name,
        name,
        EXPERIMENT,
        flatten(Config()),
        to_dict(Config()),
        tags={"git.commit": "c0"},
    )


def small(num: int = NUM) -> SearchRecord:
    return search(num)


def begun(record: SearchRecord, over: int, running: int) -> SearchRecord:
    """The search when its first trials were over and some more were running."""
    trials = [
        replace(trial, state="running", points=trial.points[:1], rungs=()) if trial.number >= over else trial
        for trial in record.trials[: over + running]
    ]
    return replace(record, trials=tuple(trials))


def write_journals(run_dir: Path, record: SearchRecord) -> None:
    """What rank 0 of each trial records, up to where it is."""
    for trial in record.trials:
        journal = Journal(run_dir / trial.run_dir, f"{trial.state}")
        journal.event("start", 0)
        for point in trial.points:
            journal.metrics(point.step, {"held/miou": point.score})
        journal.event("commit", trial.points[-1].step)
        journal.close()


def tracking(runs_dir: Path, name: str, record: SearchRecord, attempt: str) -> SearchTracking:
    return SearchTracking(describe(runs_dir, name), lambda _: Config(), attempt, record)


def stored(runs_dir: Path, name: str) -> tuple[list[Run], list[Run]]:
    """The search's runs, and the runs below them in the order of their names."""
    client = MlflowClient(f"sqlite:///{runs_dir}/mlflow.db")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([experiment.experiment_id])
    runs = [run for run in runs if run.data.tags["ccs.run_dir"].startswith(f"{runs_dir}/{name}")]
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    return parents, sorted(children, key=lambda run: run.info.run_name)


def check_whole(runs_dir: Path, name: str, record: SearchRecord) -> None:
    (parent,), children = stored(runs_dir, name)
    assert len(children) == len(record.trials)
    client = MlflowClient(f"sqlite:///{runs_dir}/mlflow.db")
    assert parent.info.status == "FINISHED"
    for trial, child in zip(record.trials, children, strict=True):
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.run_name == f"{trial.number:03d} {trial.name}"
        assert child.info.status == "FINISHED"
        assert child.data.tags["search.state"] == trial.state
        history = client.get_metric_history(child.info.run_id, "held/miou")
        assert [(m.step, m.value) for m in history] == [(p.step, p.score) for p in trial.points]
    assert not list((runs_dir / name).rglob("mlflow-pending.json"))


def test_a_search_of_two_drivers_is_one_parent_and_a_child_a_trial(runs_dir: Path) -> None:
    record = small()
    early = begun(record, over=2, running=2)
    write_journals(runs_dir / "twice", early)
    first = tracking(runs_dir, "twice", begun(record, over=0, running=0), "a")
    first.update(early)
    assert first.finish(early, "KILLED", 60) is None
    (parent,), children = stored(runs_dir, "twice")
    assert [child.info.status for child in children] == ["FINISHED", "FINISHED", "KILLED", "KILLED"]

    for trial in record.trials[2:]:
        write_journals(runs_dir / "twice", replace(record, trials=(trial,)))
    second = tracking(runs_dir, "twice", early, "b")
    second.update(record)
    assert second.finish(record, "FINISHED", 60) is None
    check_whole(runs_dir, "twice", record)
    (again,), later = stored(runs_dir, "twice")
    assert again.info.run_id == parent.info.run_id
    ids = {child.info.run_id for child in children}
    assert ids < {child.info.run_id for child in later}, "restored trials keep their runs"

    third = tracking(runs_dir, "twice", record, "c")
    third.update(record)
    assert third.finish(record, "FINISHED", 60) is None
    check_whole(runs_dir, "twice", record)


def test_the_parent_has_the_best_settings_tables_pictures_and_the_report(runs_dir: Path) -> None:
    record = small(12)
    write_journals(runs_dir / "shown", record)
    shown = tracking(runs_dir, "shown", record, "a")
    assert shown.finish(record, "FINISHED", 120) is None
    (parent,), _ = stored(runs_dir, "shown")
    best = max((t for t in record.trials if t.state == "done"), key=lambda t: t.points[-1].score)
    assert parent.data.tags["search.best_trial"] == f"{best.number:03d}"
    assert parent.data.tags["best.model.head.tau"] == str(best.settings["model.head.tau"])
    assert parent.data.tags["mlflow.note.content"].startswith(f"Trial {best.number:03d} leads")
    assert parent.data.metrics["search/best_miou"] == best.points[-1].score
    client = MlflowClient(f"sqlite:///{runs_dir}/mlflow.db")
    files = {
        file.path
        for folder in ("", "pictures", "tables")
        for file in client.list_artifacts(parent.info.run_id, folder)
    }
    assert files >= {
        "report.html",
        "search-record.json",
        "tables/search-leaderboard.json",
        "tables/search-importance.json",
    }
    pictures = {"learning_curves", "budget", "importance", "parallel_coordinates", "slices"}
    assert {f"pictures/{name}.svg" for name in pictures} <= files
    kept = json.loads(Path(client.download_artifacts(parent.info.run_id, "search-record.json")).read_text())
    assert from_json(kept) == record
    table = json.loads(
        Path(client.download_artifacts(parent.info.run_id, "tables/search-leaderboard.json")).read_text()
    )
    assert table["data"][0][1] == f"{best.number:03d}"
    assert len(table["data"]) == 12


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes every connection and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


class Broken(BaseHTTPRequestHandler):
    """Answers whatever it is asked with a fault of its own."""

    def do_GET(self) -> None:
        self.send_error(500)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


@pytest.fixture
def broken() -> Iterator[str]:
    """The address of a server of which every answer is 500."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_names_of_runs_are_as_short_as_a_table_needs_them() -> None:
    assert shortened("003 tau 12.4 · n0 0.002") == "003 tau 12.4 · n0 0.002"
    long = shortened("003 " + "tau 12.4 · " * 20)
    assert len(long) <= 80
    assert long.endswith("tau 12.4…")


def test_trials_that_no_mlflow_was_told_of_are_sent_and_those_of_another_server_again(
    runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = small(3)
    write_journals(runs_dir / "untold", record)
    for uri in (f"sqlite:///{runs_dir}/mlflow.db", f"sqlite:///{tmp_path}/mlflow.db"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.chdir(tmp_path)  # another database puts its artifacts into the current folder
        shown = tracking(runs_dir, "untold", record, "a")
        shown.update(record)
        assert shown.finish(record, "FINISHED", 60) is None
        ids = {shown.run_id_of(trial.number) for trial in record.trials}
        client = MlflowClient(uri)
        query = f"tags.`mlflow.parentRunId` = '{shown.run.run_id}'"
        found = client.search_runs([shown.run.experiment_id], query)
        assert {run.info.run_id for run in found} == ids
        assert len(ids) == 3


@pytest.mark.parametrize("kind", ["refused", "silent", "broken"])
def test_a_dead_server_neither_ends_nor_delays_a_search_and_all_is_there_when_it_is_back(
    runs_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    silent: str,
    broken: str,
    kind: str,
) -> None:
    record = small()
    name = f"dead-{kind}"
    write_journals(runs_dir / name, record)
    address = {"refused": "http://127.0.0.1:9", "silent": silent, "broken": broken}[kind]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")
    patient = MlflowRun.open
    monkeypatch.setattr(MlflowRun, "open", lambda description: patient(description, wait_s=1))
    began_s = time.monotonic()
    dead = tracking(runs_dir, name, begun(record, 0, 0), "a")
    for over in range(NUM):
        dead.update(begun(record, over, running=1))

    def outages_said() -> int:
        return sum("training goes on" in r.getMessage() for r in caplog.records)

    until(lambda: outages_said() > 0)  # else the search may be over before the first try is
    pending = dead.finish(record, "FINISHED", 1)
    assert time.monotonic() - began_s < 150, "whoever waits for the silent one waits for 300 seconds"
    assert pending is not None
    assert f"the ends of {NUM + 1} runs" in pending
    lacking = int(re.search(r"(\d+) of \d+ metric points", pending)[1])
    assert lacking >= sum(len(trial.points) for trial in record.trials)
    assert outages_said() == 1, "one line an outage"
    assert (runs_dir / name / "report.html").exists()
    monkeypatch.setattr(MlflowRun, "open", patient)

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert ship_pending(runs_dir / name, 60) is None
    check_whole(runs_dir, name, record)
    (parent,), _ = stored(runs_dir, name)
    client = MlflowClient(f"sqlite:///{runs_dir}/mlflow.db")
    assert "report.html" in {file.path for file in client.list_artifacts(parent.info.run_id)}


DRIVER = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.unit.launch.test_search_tracking import begun, tracking
from pipeline.search.records import from_json
runs, early = Path(sys.argv[2]), from_json(json.loads(Path(sys.argv[3]).read_text()))
shown = tracking(runs, "killed", begun(early, 0, 0), "a")
shown.update(begun(early, 1, 2))
while not shown.run_id_of(2):
    time.sleep(0.05)
shown.update(early)  # one more is over
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def driver(runs_dir: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    early = begun(small(), over=2, running=2)
    write_journals(runs_dir / "killed", early)
    path = tmp_path / "record.json"
    path.write_text(json.dumps(to_json(early)))
    root = str(Path(__file__).resolve().parents[3])
    command = [sys.executable, "-c", DRIVER, root, str(runs_dir), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env={**os.environ})
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_driver_that_is_killed_leaves_one_parent_to_go_on_with(
    runs_dir: Path, driver: subprocess.Popen[str]
) -> None:
    record = small()
    early = begun(record, over=2, running=2)
    assert driver.stdout.readline() == "ready\n"
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    for trial in record.trials[2:]:
        write_journals(runs_dir / "killed", replace(record, trials=(trial,)))
    second = tracking(runs_dir, "killed", early, "b")
    second.update(record)
    assert second.finish(record, "FINISHED", 60) is None
    check_whole(runs_dir, "killed", record)


def test_a_trial_that_ended_unseen_by_mlflow_is_sent_by_the_next_driver(runs_dir: Path) -> None:
    """The first driver noted that it ended, and died before its thread had sent that."""
    record = small()
    write_journals(runs_dir / "unsent", record)
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    try:
        first = tracking(runs_dir, "unsent", begun(record, 0, 0), "a")
        first.update(record)
        assert len(list((runs_dir / "unsent").rglob("mlflow-pending.json"))) == NUM
        first.finish(record, "KILLED", 0.1)
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
    (
        runs_dir / "unsent" / "mlflow-pending.json"
    ).unlink()  # a killed driver leaves none for the search itself
    second = tracking(runs_dir, "unsent", record, "b")
    second.update(record)
    assert second.finish(record, "FINISHED", 60) is None
    check_whole(runs_dir, "unsent", record)
