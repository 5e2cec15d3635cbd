"""The train job on real Ray: whole, killed, stopped, refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.launch.spares import TRAIN_ACTORS
from pipeline.tracking.journal import Event, Metrics, Record, read_journal
from pipeline.train.checkpoint import newest_checkpoint, read_checkpoint
from tests.dist.ray_processes import reserve, titled, train_workers

pytestmark = pytest.mark.cluster
SAVED_OFTEN = ["--train.checkpoint_every", "20", "--train.evaluate_every", "300"]
SAVED_OFTEN += ["--register", ""]  # these tests are not about registration, which takes its time
LONG = ["--train.steps", "300", *SAVED_OFTEN]
SHORT = ["--train.steps", "12", "--train.checkpoint_every", "4", "--train.evaluate_every", "6"]


def events(records: list[Record], name: str) -> list[Event]:
    return [record for record in records if isinstance(record, Event) and record.name == name]


def test_job_trains_on_two_workers_and_tracks_one_run_and_repeats_as_a_no_op(
    start_job, tmp_path: Path
) -> None:
    result = start_job("--name", "whole", "--workers", "2", *SHORT).result()
    assert result["status"] == "ok"
    assert result["job"] == "train"
    assert result["step"] == 12
    assert result["restarts"] == 0
    assert (result["incidents"], result["goodput"]) == ([], 1.0)
    assert 0 < result["miou"] <= 1
    assert Path(result["report"]).stat().st_size > 1000
    checkpoint = Path(result["checkpoint"])
    assert read_checkpoint(checkpoint).card.miou == pytest.approx(result["miou"])

    client = MlflowClient(result["tracking_uri"])
    run = client.get_run(result["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["world_size"] == "2"
    steps = [point.step for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == [2, 4, 6, 8, 10, 12]
    model, version = result["model_uri"].removeprefix("models:/").split("/")
    assert client.get_model_version(model, version).run_id == result["run_id"]

    again = start_job("--name", "whole", "--workers", "2", *SHORT)
    repeated = again.result()
    assert "finished already" in again.text
    assert {k: v for k, v in repeated.items() if k != "wall_s"} == {
        k: v for k, v in result.items() if k != "wall_s"
    }


def test_killed_worker_costs_a_restart_from_the_newest_commit(start_job, ray_head, tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "killed"
    job = start_job("--name", "killed", "--workers", "2", *LONG)
    job.wait_until(lambda: len(events(read_journal(run_dir), "commit")) >= 2)
    os.kill(train_workers(ray_head)[-1].pid, signal.SIGKILL)
    result = job.result()
    assert result["status"] == "ok", job.text
    assert result["restarts"] == 1
    assert result["step"] == 300
    assert " lost → restarted in " in job.text
    (incident,) = result["incidents"]
    assert re.fullmatch(r"rank [01] lost", incident["cause"])
    assert incident["phase"] in ("data", "step", "checkpoint")
    assert 0 < result["goodput"] < 1
    assert f"goodput {result['goodput']:.2f}" in job.text
    records = read_journal(run_dir)
    resumed = events(records, "start")[-1].step
    assert resumed >= 40
    assert resumed % 20 == 0, "it went on from a commit"
    assert events(records, "restart")[0].step == resumed
    curve = [
        record.step for record in records if isinstance(record, Metrics) and "train/loss" in record.values
    ]
    assert curve == list(range(2, 301, 2)), "each point of the curve once, none missing"


def test_rank_that_hangs_is_named_killed_and_costs_a_restart(start_job, ray_head, tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "hung"
    job = start_job("--name", "hung", "--workers", "2", *LONG)
    job.wait_until(lambda: len(events(read_journal(run_dir), "commit")) >= 1)
    stopped = train_workers(ray_head)[-1]
    stopped.suspend()
    result = job.result()
    assert result["status"] == "ok", job.text
    assert (result["restarts"], result["step"]) == (1, 300)
    assert not stopped.is_running(), "the stopped process is gone, with what it held"
    (failure,) = events(read_journal(run_dir), "failure")
    # On a starved machine the group's stand is noticed before the one rank's silence.
    seen = r"rank [01](, 1)? hung \((silent|standing still) for \d+\.\ds in (data|step)\)"
    assert re.fullmatch(seen, failure.fields["lost"])
    assert f"[event] {failure.fields['lost']} → restarted in " in job.text
    (incident,) = result["incidents"]
    assert incident["cause"] == failure.fields["lost"]
    assert incident["recover_s"] > failure.fields["stood_s"] > 5.0, "the silence is part of it"


def test_restart_is_made_of_processes_in_reserve(start_job, ray_head, tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "reserve"
    job = start_job("--name", "reserve", "--workers", "2", "--train.steps", "1000000", *SAVED_OFTEN)
    job.wait_until(lambda: len(reserve(ray_head)) >= 2 + TRAIN_ACTORS, 180)
    job.wait_until(lambda: len(events(read_journal(run_dir), "commit")) >= 1)
    waiting = reserve(ray_head)
    train_workers(ray_head)[0].kill()
    job.wait_until(lambda: len(events(read_journal(run_dir), "start")) == 2, 180)
    assert {process.pid for process in train_workers(ray_head)} < waiting


def test_controller_that_dies_before_its_ranks_are_seen_keeps_no_cpus(start_job, ray_head) -> None:
    job = start_job("--name", "early", "--workers", "2", *SHORT, "--register", "")
    job.wait_until(lambda: bool(train_workers(ray_head)), 240)
    (controller,) = titled(ray_head, "TrainController")
    controller.kill()
    result = job.result()
    assert (result["status"], result["step"], result["restarts"]) == ("ok", 12, 1), job.text
    assert "for room for 2 workers" not in job.text, "Ray keeps them until the job ends"


def test_stopped_job_checkpoints_and_its_rerun_goes_on_at_the_next_sample(start_job, tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "stopped"
    job = start_job("--name", "stopped", "--workers", "2", *LONG)
    job.wait_until(lambda: len(events(read_journal(run_dir), "commit")) >= 1)
    job.process.send_signal(signal.SIGTERM)
    result = job.result()
    assert result["exit_code"] == 75
    assert result["status"] == "preempted"
    assert "--name stopped to go on" in job.text
    newest = newest_checkpoint(run_dir)
    assert newest is not None
    state = json.loads((newest / "state.json").read_text())["progress"]
    assert state["step"] == result["step"] < 300
    assert events(read_journal(run_dir), "stop")[0].step == result["step"]

    rerun = start_job("--name", "stopped", "--workers", "2", *LONG).result()
    assert rerun["status"] == "ok"
    assert rerun["run_id"] == result["run_id"], "one MLflow run for the name"
    start = events(read_journal(run_dir), "start")[-1]
    assert (start.step, start.fields["position"]) == (result["step"], result["step"] * 4)


def test_more_workers_than_the_cluster_has_room_for_are_refused_with_the_number_that_fits(start_job) -> None:
    job = start_job("--workers", "4")
    assert job.result()["exit_code"] == 2
    assert "--workers 2 fits" in job.text


def test_error_of_a_worker_ends_the_job_with_its_own_line_and_exit_code(
    start_job, city_shards, tmp_path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(city_shards, damaged)
    tar = damaged / "train" / "train-000000.tar"
    content = bytearray(tar.read_bytes())
    index = [json.loads(line) for line in tar.with_suffix(".index.jsonl").read_text().splitlines()]
    for entry in index:
        content[entry["image"]["offset"] + entry["image"]["bytes"] // 2] ^= 1
    tar.write_bytes(bytes(content))

    job = start_job("--workers", "2", *SHORT, shards=damaged)
    result = job.result()
    assert (result["status"], result["exit_code"]) == ("shard_error", 2), job.text
    assert "train-000000.tar" in job.text
    assert "Traceback" not in job.text
    assert "restarted" not in job.text
