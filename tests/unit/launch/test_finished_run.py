"""A finished run that is started again: MLflow gets what it lacks, and nothing is trained."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.launch import finished_run, ray_cluster
from pipeline.launch.job import Result
from pipeline.launch.preflight import check_run
from pipeline.launch.publish import Published
from pipeline.launch.run_folder import identity, write_json
from pipeline.launch.train_job import FIELDS, train
from pipeline.recipes import recipe


class FakeRun:
    """An MLflow run that only keeps what it was given."""

    run_id, experiment_id = "run-2", "1"
    tags: Any = None

    @classmethod
    def open(cls, description: Any) -> "FakeRun":
        run = cls()
        run.tags = description.tags
        return run

    def add_artifact(self, path: Path) -> None:
        assert path.is_file()

    def finish(self, status: str, timeout_s: float) -> str | None:
        assert status == "FINISHED"
        return None


class World:
    """The finished run, and what was asked of MLflow."""

    def __init__(self, shards: Path, runs: Path) -> None:
        self.shards, self.runs, self.run_dir = shards, runs, runs / "x"
        self.version: str | None = "1"
        self.published: list[tuple[str, str]] = []
        self.shipped: list[Path] = []
        self.pending: str | None = None

    def finish(self, model_uri: str | None) -> None:
        config = recipe("laptop")
        checked = check_run(config, str(self.shards), self.run_dir)
        self.run_dir.mkdir(parents=True)
        write_json(self.run_dir / "config.json", identity(config, {"manifest_id": checked.manifest_id}))
        result = dict.fromkeys(FIELDS) | {
            "status": "ok",
            "exit_code": 0,
            "miou": 0.5,
            "step": config.train.steps,
        }
        result |= {"model_uri": model_uri, "run_id": "run-1", "shards": str(self.shards)}
        write_json(self.run_dir / "result.json", result | {"git_commit": "c0ffee"})

    def publish(self, run_dir: Path, run: FakeRun, config: Any, git_commit: str) -> Published:
        name = config.tracking.registered_model
        self.published.append((name, git_commit))
        assert run.tags == {}, "the tags of the training stay"
        uri = f"models:/{name}/{self.version}" if self.version else str(run_dir / "export")
        return Published(uri, self.version, f"tried {name}")

    def ship(self, run_dir: Path, timeout_s: float) -> str | None:
        self.shipped.append(run_dir)
        return self.pending

    def again(self, *more: str) -> Result:
        result: Result = dict.fromkeys(FIELDS)
        train(result, ["--shards", str(self.shards), "--runs", str(self.runs), "--name", "x", *more])
        return result

    @property
    def recorded(self) -> Result:
        return dict(json.loads((self.run_dir / "result.json").read_text()))


@pytest.fixture
def world(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(shards, tmp_path)
    monkeypatch.setattr(ray_cluster, "connected", lambda *_: pytest.fail("Ray was started"))
    monkeypatch.setattr(finished_run, "MlflowRun", FakeRun)
    monkeypatch.setattr(finished_run, "ship_pending", made.ship)
    monkeypatch.setattr("pipeline.launch.run_record.publish_best", made.publish)
    return made


def test_what_is_pending_is_shipped_and_what_stays_pending_is_told(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    caplog.set_level(logging.INFO, "pipeline")
    world.finish("models:/mini-ccs/3")
    world.pending = "MLflow is out of reach"
    result = world.again()
    assert world.shipped == [world.run_dir]
    assert "MLflow is out of reach" in caplog.text
    assert (result["model_uri"], result["miou"]) == ("models:/mini-ccs/3", 0.5)
    assert "git_commit" not in result
    assert world.published == []


def test_model_whose_registration_failed_is_registered_now(world: World) -> None:
    world.finish("/somewhere/export")
    result = world.again()
    assert world.published == [("mini-ccs", "c0ffee")], "with the commit that trained it"
    assert result["model_uri"] == world.recorded["model_uri"] == "models:/mini-ccs/1"
    assert result["run_id"] == world.recorded["run_id"] == "run-2"
    assert Path(result["report"]).is_file()
    world.again()
    assert len(world.published) == 1, "once is enough"


def test_registration_that_fails_again_changes_nothing(world: World) -> None:
    world.finish("/somewhere/export")
    world.version = None
    assert world.again()["model_uri"] == world.recorded["model_uri"] == "/somewhere/export"


@pytest.mark.parametrize(
    ("recorded", "typed", "expected"),
    [
        ("models:/mini-ccs/3", ["--register", "other"], ["other"]),
        ("models:/mini-ccs/3", ["--tracking.registered_model", "other"], ["other"]),
        ("models:/other/3", ["--register", "other"], []),
        ("models:/other/3", [], []),
        ("/somewhere/export", ["--register", ""], []),
        ("/somewhere/export", ["--preflight-only"], []),
    ],
)
def test_typed_name_counts_and_the_recipes_name_moves_nothing(
    world: World, recorded: str, typed: list[str], expected: list[str]
) -> None:
    world.finish(recorded)
    result = world.again(*typed)
    assert [name for name, _ in world.published] == expected
    assert result["model_uri"] == (f"models:/{expected[0]}/1" if expected else recorded)
