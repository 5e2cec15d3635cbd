"""The train job on real Ray with its run in an object store: known, and extended, on another machine."""

import os
import shutil
import sys
from pathlib import Path

import boto3
import pytest

from tests.dist.conftest import TINY, Job
from tests.moto_server import serving_s3
from tests.rclone_server import s3_environment

pytestmark = pytest.mark.cluster
RUNS = "s3://runs/of/mine"


def test_a_job_whose_machine_is_gone_is_known_and_extended_by_another(
    city_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_s3() as place:
        for name, value in s3_environment(f"http://{place}").items():
            monkeypatch.setenv(name, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket="runs")
        environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}

        def job(machine: str, *words: str) -> tuple[dict, str]:
            command = [
                sys.executable,
                "jobs/train_cityscapes.py",
                "--shards",
                str(city_shards),
                "--runs",
                RUNS,
            ]
            command += ["--name", "x", "--workers", "1", "--data.store.cache_dir", str(tmp_path / machine)]
            run = Job(
                [*command, *TINY, *words], environment | {"OMP_NUM_THREADS": "1"}, tmp_path / f"{machine}.log"
            )
            return run.result(180), run.text

        first, said = job("one", "--train.steps", "4", "--train.checkpoint_every", "2")
        assert (first["status"], first["step"], first["restarts"]) == ("ok", 4, 0), said
        assert first["checkpoint"].startswith(f"{RUNS}/x/checkpoints/step_0000000")
        bucket_key = first["checkpoint"].removeprefix("s3://runs/") + "/COMMIT.json"
        assert client.head_object(Bucket="runs", Key=bucket_key)["ContentLength"] > 100
        shutil.rmtree(tmp_path / "one", ignore_errors=True)
        again, said = job("two", "--train.steps", "4", "--train.checkpoint_every", "2")
        assert (again["status"], again["miou"]) == ("ok", first["miou"]), said
        assert "is finished already" in said
        longer, said = job("three", "--train.steps", "6", "--train.checkpoint_every", "2", "--extend")
        assert (longer["status"], longer["step"]) == ("ok", 6), said
        assert "resumed=step 4" in said, said
