"""A finished run goes on with more steps: one history, one MLflow run, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.tracking.journal import Event, Metrics, Record, read_journal

pytestmark = pytest.mark.cluster
USUAL = [
    "--name",
    "longer",
    "--workers",
    "2",
    "--train.checkpoint_every",
    "8",
    "--train.evaluate_every",
    "10",
]


def curve(records: list[Record], key: str) -> list[int]:
    return [r.step for r in records if isinstance(r, Metrics) and key in r.values]


def test_extended_run_has_one_continuous_history_and_its_repeats_are_no_ops(
    start_job, tmp_path: Path
) -> None:
    run_dir = tmp_path / "runs" / "longer"
    first = start_job(*USUAL, "--train.steps", "20").result()
    assert (first["status"], first["step"]) == ("ok", 20)

    job = start_job(*USUAL, "--train.steps", "40", "--extend")
    result = job.result()
    assert (result["status"], result["step"], result["run_id"]) == ("ok", 40, first["run_id"]), job.text
    assert "resumed=step 20" in job.text
    assert result["miou"] >= first["miou"], "the best of both halves"
    recorded = json.loads((run_dir / "config.json").read_text())["config"]["train"]
    assert (recorded["steps"], recorded["extended_at"]) == (40, "20")

    records = read_journal(run_dir)
    starts = [r for r in records if isinstance(r, Event) and r.name == "start"]
    assert [(r.step, r.fields["position"]) for r in starts] == [(0, 0), (20, 80)]
    assert curve(records, "train/loss") == list(range(2, 41, 2))
    assert curve(records, "val/miou") == [10, 20, 30, 40]
    client = MlflowClient(result["tracking_uri"])
    for key, steps in (("train/loss", range(2, 41, 2)), ("val/miou", range(10, 41, 10))):
        history = client.get_metric_history(result["run_id"], key)
        assert sorted(point.step for point in history) == list(steps), "none lost, none twice"
    run = client.get_run(result["run_id"])
    assert (run.info.status, run.data.tags["extended_at"]) == ("FINISHED", "20")
    model, version = result["model_uri"].removeprefix("models:/").split("/")
    assert client.get_model_version(model, version).run_id == result["run_id"]

    again = start_job(*USUAL, "--train.steps", "40", "--extend")
    assert {k: v for k, v in again.result().items() if k != "wall_s"} == {
        k: v for k, v in result.items() if k != "wall_s"
    }
    assert "finished already" in again.text
