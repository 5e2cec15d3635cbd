"""A run kept in an object store: killed at any point of an upload, its machine gone, it ends as if nothing had been.

Real processes, real signals, a server that heeds conditions; the oracle is one undisturbed run in a local folder.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from pipeline.tracking.journal import Event, read_journal
from pipeline.train import checkpoint
from tests.dist.test_killed_while_saving import SETTINGS, Attempts, assert_as_undisturbed
from tests.moto_server import serving_s3
from tests.rclone_server import s3_environment

ROOT = Path(__file__).parents[2]


class RemoteAttempts(Attempts):
    """Talks to tests/dist/remote_attempts.py."""

    program = "remote_attempts.py"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving_s3() as place, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(f"http://{place}").items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="runs")
        yield place


@pytest.fixture(scope="module")
def attempts(server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attempts]:
    process = RemoteAttempts(tmp_path_factory.mktemp("log") / "err")
    yield process
    process.close()


@pytest.fixture(scope="module")
def undisturbed(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    local = Attempts(tmp_path_factory.mktemp("log") / "err")
    assert local(run={"run_dir": str(run_dir), "shards": shards, "settings": SETTINGS})["exit"] == 0
    local.close()
    return run_dir


@pytest.fixture
def case(shards: str, tmp_path: Path) -> Callable[..., dict]:
    def make(machine: str = "here", **more: object) -> dict:
        runs = f"s3://runs/{tmp_path.name}"
        copy = tmp_path / machine / "run"
        return {"runs": runs, "run_dir": str(copy), "shards": shards, "settings": SETTINGS} | more

    return make


def objects(tmp_path: Path) -> dict[str, bytes]:
    """What the server has of the run, but for the lease."""
    client = boto3.client("s3")
    listed = client.list_objects_v2(Bucket="runs", Prefix=f"{tmp_path.name}/run/").get("Contents", [])
    keys = [entry["Key"] for entry in listed if not entry["Key"].endswith("/lease")]
    return {key: client.get_object(Bucket="runs", Key=key)["Body"].read() for key in keys}


def committed_there(tmp_path: Path) -> list[str]:
    """Steps of the checkpoints that the server has, as their names begin."""
    names = [key.split("/") for key, data in objects(tmp_path).items() if len(data) > 20]
    return sorted(parts[-2][:13] for parts in names if parts[-1] == checkpoint.COMMIT)


POINTS = [
    ("put", "step_00000002", 0), ("put", "step_00000002", 2), ("create", "step_00000002", 0),
    ("done create", "step_00000002", 0), ("put", "step_00000004", 1), ("create", "step_00000004", 0),
    ("done create", "step_00000004", 0), ("put", "score.json", 0), ("done put", "score.json", 1),
    ("create", "journal/", 2), ("done create", "journal/", 2), ("remove", "step_00000002", 0),
    ("done remove", "COMMIT.json", 0), ("create", "step_00000006", 0), ("create", "attempts/", 0),
]  # fmt: skip


@pytest.mark.parametrize("machine", ["here", "elsewhere"])
@pytest.mark.parametrize(
    "point", POINTS, ids=lambda point: f"{point[0]}-{point[1]}-{point[2]}".replace(" ", "-")
)
def test_killed_at_any_point_of_an_upload_it_ends_bit_for_bit_also_where_the_machine_is_gone(
    point: tuple[str, str, int], machine: str, attempts: Attempts, case: Callable[..., dict], undisturbed: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    killed = attempts(run=case(at=point, signal=signal.SIGKILL))
    assert killed["signal"] == signal.SIGKILL, attempts.log.read_text()
    if machine == "elsewhere":
        shutil.rmtree(tmp_path / "here")
    assert attempts(run=case(machine))["exit"] == 0, attempts.log.read_text()
    assert_as_undisturbed(tmp_path / machine / "run", undisturbed)
    # And once more, from nothing but the store: a third machine finds the whole run and has nothing to train.
    shutil.rmtree(tmp_path / machine)
    assert attempts(run=case("third"))["exit"] == 0, attempts.log.read_text()
    assert_as_undisturbed(tmp_path / "third" / "run", undisturbed)
    kept = sorted(path.name[:13] for path in (undisturbed / "checkpoints").iterdir())
    assert committed_there(tmp_path) == kept
