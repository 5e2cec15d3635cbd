"""What reaches MLflow from a journal, on a real sqlite store: all that counts, once, and nothing else."""

import json
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from pipeline.config import Config
from pipeline.settings import flatten, to_dict
from pipeline.tracking.dataset_source import DatasetInfo
from pipeline.tracking.journal import Journal
from pipeline.tracking.mlflow_store import MlflowStore, RunDescription
from pipeline.tracking.mlflow_sync import MlflowRun, ship_pending

MANIFEST = "3f9c" * 16


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for the module: making one takes seconds."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def own_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def describe(runs_dir: Path, name: str, config: Config | None = None) -> RunDescription:
    config = config or Config()
    info = DatasetInfo("mini", "/data/mini", "train", "training", MANIFEST, 96, 2, 1000, ("road", "sky"))
    return RunDescription(
        runs_dir=runs_dir,
        run_dir=runs_dir / name,
        run_name=name,
        experiment="test",
        params=flatten(config),
        config=to_dict(config),
        datasets=(info,),
        tags={"git.commit": "abc", "device": "cpu"},
        note="first line",
    )


def open_run(description: RunDescription) -> MlflowRun:
    run = MlflowRun.open(description, wait_s=60, ship_every_s=0.05)
    assert run.run_id is not None
    return run


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def history(run: MlflowRun, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in MlflowClient(run.tracking_uri).get_metric_history(run.run_id, key)]


def test_only_committed_steps_are_shipped_while_training_and_all_at_the_end(runs_dir: Path) -> None:
    journal = Journal(runs_dir / "commits", "a")
    run = open_run(describe(runs_dir, "commits"))
    journal.event("start", 0)
    for step in (1, 2, 3):
        journal.metrics(step, {"train/loss": float(step)})
    journal.event("commit", 2)
    until(lambda: len(history(run, "train/loss")) == 2)
    time.sleep(0.3)  # several turns of the shipping thread
    assert history(run, "train/loss") == [(1, 1.0), (2, 2.0)], "step 3 may still be rolled back"
    assert run.finish("FINISHED", 60) is None
    assert history(run, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert MlflowClient(run.tracking_uri).get_run(run.run_id).info.status == "FINISHED"
    journal.close()


def test_a_killed_attempt_and_its_rerun_make_one_run_with_each_step_once(runs_dir: Path) -> None:
    first = Journal(runs_dir / "rerun", "a")
    first.event("start", 0)
    for step in range(1, 8):
        first.metrics(step, {"loss": float(step)})
    first.event("commit", 5)
    first.close()
    killed = open_run(describe(runs_dir, "rerun"))
    assert killed.finish("KILLED", 60) is None
    assert [s for s, _ in history(killed, "loss")] == [1, 2, 3, 4, 5]

    second = Journal(runs_dir / "rerun", "b")
    second.event("start", 5)
    for step in range(6, 11):
        second.metrics(step, {"loss": step * 10.0})
    second.close()
    again = open_run(describe(runs_dir, "rerun"))
    assert again.run_id == killed.run_id, "the same name continues the same MLflow run"
    assert again.finish("FINISHED", 60) is None
    assert history(again, "loss") == [(s, float(s)) for s in range(1, 6)] + [
        (s, s * 10.0) for s in range(6, 11)
    ]


def test_a_run_that_is_deleted_while_it_is_filled_is_made_anew_with_all_that_it_had(runs_dir: Path) -> None:
    """As with a server that begins again with an empty database: nobody has to start the job again for it."""
    journal = Journal(runs_dir / "deleted", "a")
    run = open_run(describe(runs_dir, "deleted"))
    report = runs_dir / "deleted" / "report.html"
    report.write_text("<p>hello")
    run.add_artifact(report)
    journal.event("start", 0)
    journal.picture("val_pred/scene0", 1, np.zeros((8, 12, 3), np.uint8))
    for step in (1, 2):
        journal.metrics(step, {"train/loss": float(step)})
        journal.event("commit", step)
        until(lambda: len(history(run, "train/loss")) == step)  # noqa: B023 - called at once
    first, client = run.run_id, MlflowClient(run.tracking_uri)
    assert first is not None
    until(lambda: any(file.path == "report.html" for file in client.list_artifacts(first)))
    client.delete_run(first)
    journal.metrics(3, {"train/loss": 3.0})
    journal.event("commit", 3)
    until(lambda: run.run_id != first)
    assert run.finish("FINISHED", 60) is None
    assert history(run, "train/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    again = client.get_run(str(run.run_id))
    assert (again.info.status, again.data.params["train.steps"]) == ("FINISHED", str(Config().train.steps))
    assert {"images", "journal", "config.json", "report.html"} <= {
        file.path for file in client.list_artifacts(str(run.run_id))
    }
    journal.close()


def test_the_same_name_in_another_folder_is_another_run(runs_dir: Path) -> None:
    here = open_run(describe(runs_dir, "twin"))
    there = describe(runs_dir, "twin")
    other = MlflowRun.open(RunDescription(**{**vars(there), "run_dir": runs_dir / "elsewhere"}), wait_s=60)
    assert here.run_id != other.run_id
    assert here.finish("FINISHED") is None
    assert other.finish("FINISHED") is None


def test_a_run_tells_its_settings_data_and_experiment_view(runs_dir: Path) -> None:
    run = open_run(describe(runs_dir, "facts"))
    run.set_note("mIoU 0.61\nsecond")
    assert run.finish("FINISHED", 60) is None
    client = MlflowClient(run.tracking_uri)
    stored = client.get_run(run.run_id)
    assert stored.data.params == {key: str(value) for key, value in flatten(Config()).items()}
    assert stored.data.tags["mlflow.note.content"].startswith("mIoU 0.61")
    assert stored.data.tags["git.commit"] == "abc"
    assert stored.data.tags["device"] == "cpu"
    (dataset,) = stored.inputs.dataset_inputs
    assert dataset.dataset.source_type == "webdataset"
    assert MANIFEST.startswith(dataset.dataset.digest)
    assert json.loads(dataset.dataset.source)["manifest_sha256"] == MANIFEST
    assert [tag.value for tag in dataset.tags] == ["training"]
    config = json.loads(Path(client.download_artifacts(run.run_id, "config.json")).read_text())
    assert config == to_dict(Config())
    tags = client.get_experiment(run.experiment_id).tags
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    assert "metrics.`val/miou`" in json.loads(tags["mlflow.sharedViewState.training"])["selectedColumns"]
    assert any(key.startswith("system/cpu") for key in stored.data.metrics)


def test_a_rerun_with_other_settings_keeps_the_params_and_renews_the_config(runs_dir: Path) -> None:
    from dataclasses import replace

    first = open_run(describe(runs_dir, "changed"))
    assert first.finish("FINISHED") is None
    config = replace(Config(), launch=replace(Config().launch, max_failures=9))
    second = open_run(describe(runs_dir, "changed", config))
    assert second.finish("FINISHED") is None
    client = MlflowClient(second.tracking_uri)
    assert client.get_run(second.run_id).data.params["launch.max_failures"] == "3"
    path = client.download_artifacts(second.run_id, "config.json")
    assert json.loads(Path(path).read_text())["launch"]["max_failures"] == 9
    assert len(client.get_run(second.run_id).inputs.dataset_inputs) == 1


def test_pictures_tables_and_artifacts_arrive_once_however_often_the_run_is_opened(runs_dir: Path) -> None:
    journal = Journal(runs_dir / "pictures", "a")
    journal.event("start", 0)
    for step in (10, 20):
        journal.picture("val_pred/scene0", step, np.full((8, 12, 3), step, np.uint8))
        journal.table(
            "val/iou_per_class", step, ["class", "iou"], [["road", 0.5 + step / 100], ["sky", None]]
        )
        journal.table("val/confusion", step, ["label", "road", "sky"], [["road", 3, step], ["sky", 0, 0]])
    journal.close()
    (runs_dir / "pictures" / "report.html").write_text("<p>hello")
    for _ in range(2):
        run = open_run(describe(runs_dir, "pictures"))
        run.add_artifact(runs_dir / "pictures" / "report.html")
        assert run.finish("FINISHED", 60) is None
    client = MlflowClient(run.tracking_uri)
    images = [f.path for f in client.list_artifacts(run.run_id, "images")]
    assert sum(i.endswith(".png") for i in images) == 2
    assert all("val_pred~scene0+step+" in image for image in images), "the name that makes a slider"
    assert client.get_run(run.run_id).data.tags["mlflow.loggedImages"] == "True"
    files = {f.path for f in client.list_artifacts(run.run_id, "tables")}
    assert files == {
        "tables/val-iou_per_class.json", "tables/val-confusion.json", "tables/val-confusion.png",
        "tables/events.json",
    }  # fmt: skip
    table = json.loads(
        Path(client.download_artifacts(run.run_id, "tables/val-iou_per_class.json")).read_text()
    )
    assert table == {"columns": ["class", "iou"], "data": [["road", 0.7], ["sky", None]]}
    assert (
        json.loads(client.get_run(run.run_id).data.tags["mlflow.loggedArtifacts"]).count(
            {"path": "tables/val-confusion.json", "type": "table"}
        )
        == 1
    )
    assert {f.path for f in client.list_artifacts(run.run_id)} >= {"report.html", "journal", "config.json"}


def test_a_picture_that_went_bad_on_the_disk_is_left_out_and_holds_nothing_else_up(
    runs_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(runs_dir / "bad-pictures", "a")
    journal.event("start", 0)
    for step in range(4):
        journal.picture("val_pred/scene0", step, np.full((40, 60, 3), 99, np.uint8))
        journal.metrics(step, {"loss": 1.0})
    journal.close()
    for step, path in enumerate(sorted((runs_dir / "bad-pictures" / "pictures").rglob("*.png"))[:3]):
        path.write_bytes([b"", b"no picture", path.read_bytes()[:-30]][step])
    run = open_run(describe(runs_dir, "bad-pictures"))
    assert run.finish("FINISHED", 20) is None
    assert [step for step, _ in history(run, "loss")] == list(range(4))
    images = MlflowClient(run.tracking_uri).list_artifacts(str(run.run_id), "images")
    assert {file.path.partition("+step+")[2].partition("+")[0] for file in images} == {"3"}
    lines = [record.message for record in caplog.records if "is left out" in record.message]
    assert len(lines) == 3


def test_a_thousand_points_and_more_fit_several_requests(runs_dir: Path) -> None:
    journal = Journal(runs_dir / "many", "a")
    for step in range(1, 600):
        journal.metrics(step, {"a": 1.0 * step, "b": 2.0 * step})
    journal.metrics(600, {"a": float("nan"), "b": float("inf")})
    journal.close()
    run = open_run(describe(runs_dir, "many"))
    assert run.finish("FINISHED", 60) is None
    assert [s for s, _ in history(run, "a")] == list(range(1, 601))
    assert [s for s, _ in history(run, "b")] == list(range(1, 601))


def test_a_system_sample_whose_answer_was_lost_arrives_once(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, lost = MlflowStore.send_metrics, []

    def send_and_lose_the_first_answer(self, run_id, points) -> None:
        send(self, run_id, points)
        if not lost:
            lost.append(len(points))
            raise ConnectionError("the answer was lost")

    monkeypatch.setattr(MlflowStore, "send_metrics", send_and_lose_the_first_answer)
    for jobs in (1, 2):
        run = open_run(describe(runs_dir, "samples"))
        assert run.finish("FINISHED", 60) is None
        found = MlflowClient(run.tracking_uri).get_metric_history(run.run_id, "system/disk_usage_percentage")
        assert len({m.timestamp for m in found}) == len(found) >= jobs
        assert [m.step for m in found] == list(range(len(found))), "a later job goes on counting"
    assert lost


def test_a_child_that_cannot_be_sent_keeps_none_of_its_siblings_waiting(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_any = MlflowStore.open_run

    def refuse_one(self, description):
        if description.run_name == "first":
            raise ConnectionError("not this one")
        return open_any(self, description)

    monkeypatch.setattr(MlflowStore, "open_run", refuse_one)
    parent = open_run(describe(runs_dir, "family"))
    children = []
    for name in ("first", "second", "third"):
        journal = Journal(runs_dir / "family" / name, "a")
        journal.metrics(1, {"loss": 1.0})
        journal.close()
        below = RunDescription(**{**vars(describe(runs_dir, name)), "run_dir": runs_dir / "family" / name})
        children.append(parent.child(below))
        assert (runs_dir / "family" / name / "mlflow-pending.json").exists(), "noted before anything is sent"
        children[-1].close("FINISHED")
    until(lambda: all(child.ended.is_set() for child in children[1:]))
    pending = parent.finish("FINISHED", 1)
    assert pending is not None
    assert "1 of " in pending
    left = [path.parent.name for path in (runs_dir / "family").rglob("mlflow-pending.json")]
    assert sorted(left) == ["family", "first"]

    monkeypatch.setattr(MlflowStore, "open_run", open_any)
    assert ship_pending(runs_dir / "family", 60) is None
    client = MlflowClient(parent.tracking_uri)
    query = f"tags.`mlflow.parentRunId` = '{parent.run_id}'"
    runs = client.search_runs([parent.experiment_id], query)
    assert sorted(run.info.run_name for run in runs) == ["first", "second", "third"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert not list((runs_dir / "family").rglob("mlflow-pending.json"))


def test_a_broken_store_neither_raises_nor_blocks_and_says_what_is_pending(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    (runs / "mlflow.db").write_text("this is no database")
    journal = Journal(runs / "x", "a")
    journal.metrics(1, {"a": 1.0, "b": 2.0})
    journal.close()
    start = time.monotonic()
    run = MlflowRun.open(describe(runs, "x"), wait_s=20)
    assert run.run_id is None
    pending = run.finish("FINISHED", timeout_s=1.0)
    assert time.monotonic() - start < 30
    assert pending is not None
    assert "2 of 2 metric points" in pending
    assert "type the same with --name x again to ship them" in pending
    assert sum("out of reach" in r.message for r in caplog.records) == 1, "one warning an outage"


def test_the_database_is_whole_and_beside_the_artifacts(runs_dir: Path) -> None:
    run = open_run(describe(runs_dir, "place"))
    assert run.finish("FINISHED") is None
    assert run.tracking_uri == f"sqlite:///{runs_dir}/mlflow.db"
    assert sqlite3.connect(runs_dir / "mlflow.db").execute("pragma integrity_check").fetchone() == ("ok",)
    assert (runs_dir / "mlartifacts" / str(run.run_id)).is_dir()
