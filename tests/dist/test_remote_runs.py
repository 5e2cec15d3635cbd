"""A run in an object store: killed anywhere in an upload, its machine gone, it ends as if nothing had been.

Real processes, real signals, a server that heeds conditions; the oracle is an undisturbed run in a folder.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from pipeline.launch.torchrun import main
from pipeline.tracking.journal import Event, read_journal
from pipeline.train import checkpoint
from tests.dist.test_killed_while_saving import SETTINGS, Attempts, assert_as_undisturbed, history, state
from tests.faulty_proxy import FaultyProxy
from tests.moto_server import serving_s3
from tests.rclone_server import s3_environment, serving

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


POINTS = {
    "elsewhere": [
        ("put", "step_00000002", 2), ("create", "step_00000004", 0), ("done create", "step_00000004", 0),
        ("create", "journal/", 2),
    ],
    "here": [("create", "step_00000004", 0), ("done remove", "COMMIT.json", 0)],
}  # fmt: skip
"""After which the machine is gone, or not."""


@pytest.mark.parametrize(
    ("machine", "point"),
    [(machine, point) for machine, points in POINTS.items() for point in points],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)).replace(" ", "-"),
)
def test_killed_at_any_point_of_an_upload_it_ends_bit_for_bit_also_where_the_machine_is_gone(
    point: tuple[str, str, int], machine: str, attempts: Attempts, case: Callable[..., dict],
    undisturbed: Path, tmp_path: Path,
) -> None:  # fmt: skip
    killed = attempts(run=case(at=point, signal=signal.SIGKILL))
    assert killed["signal"] == signal.SIGKILL, attempts.log.read_text()
    if machine == "elsewhere":
        shutil.rmtree(tmp_path / "here")
    assert attempts(run=case(machine))["exit"] == 0, attempts.log.read_text()
    assert_as_undisturbed(tmp_path / machine / "run", undisturbed)
    kept = sorted(path.name[:13] for path in (undisturbed / "checkpoints").iterdir())
    assert committed_there(tmp_path) == kept


def counting(tmp_path: Path) -> dict[str, bytes]:
    """What of the server's objects counts for a reader: no files of a checkpoint without a COMMIT."""
    there = objects(tmp_path)
    whole = {
        key.rpartition("/")[0]
        for key, data in there.items()
        if key.endswith("COMMIT.json") and len(data) > 20
    }
    return {k: data for k, data in there.items() if "/checkpoints/" not in k or k.rpartition("/")[0] in whole}


def test_an_attempt_that_wakes_up_when_another_machine_went_on_can_commit_nothing_at_the_store(
    attempts: Attempts, case: Callable[..., dict], undisturbed: Path, tmp_path: Path
) -> None:
    """At all other points, and before all requests: tests/unit/launch/test_remote_takeover.py."""
    zombie = attempts(run=case(at=("create", "step_00000004", 0), signal=signal.SIGSTOP))
    assert zombie["stopped"], attempts.log.read_text()
    assert attempts(run=case("elsewhere"))["exit"] == 0, attempts.log.read_text()
    before = counting(tmp_path)
    assert attempts(go_on=zombie["pid"])["exit"] == 3
    assert "is over: attempt 0002 has begun since" in attempts.log.read_text()
    assert counting(tmp_path) == before
    assert_as_undisturbed(tmp_path / "elsewhere" / "run", undisturbed)
    shutil.rmtree(tmp_path / "elsewhere")
    assert attempts(run=case("third"))["exit"] == 0, attempts.log.read_text()
    assert_as_undisturbed(tmp_path / "third" / "run", undisturbed)


def test_of_two_live_jobs_of_a_name_the_second_is_refused_on_any_machine(
    attempts: Attempts, case: Callable[..., dict], tmp_path: Path
) -> None:
    told = tmp_path / "holds"
    first = attempts(run=case(hold_s=3.0, told=str(told), renew_s=0.5), beside=True)
    give_up_s = time.monotonic() + 60
    while not told.exists():
        assert time.monotonic() < give_up_s
        time.sleep(0.05)
    for machine, said in (("here", "live job on this machine"), ("elsewhere", "is held by a live job (pid ")):
        assert attempts(run=case(machine))["exit"] == 3
        assert said in attempts.log.read_text().splitlines()[-1]
    assert attempts(wait=first["pid"])["exit"] == 0, attempts.log.read_text()
    assert attempts(run=case("elsewhere"))["exit"] == 0, "a job that ended holds nothing"


def spoil(client, key: str, how: str) -> None:
    if how == "removed":
        client.delete_object(Bucket="runs", Key=key)
        return
    data = bytearray(client.get_object(Bucket="runs", Key=key)["Body"].read())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    client.put_object(Bucket="runs", Key=key, Body=bytes(data[: len(data) // 2] if how == "cut" else data))


@pytest.mark.parametrize(
    ("name", "how"),
    [("optimizer.safetensors", "flipped"), ("COMMIT.json", "cut")],
)
def test_a_damaged_newest_checkpoint_at_the_store_is_walked_past(
    name: str, how: str, attempts: Attempts, case: Callable[..., dict], undisturbed: Path, tmp_path: Path
) -> None:
    killed = attempts(run=case(at=("done create", "step_00000004", 0), signal=signal.SIGKILL))
    assert killed["signal"] == signal.SIGKILL
    shutil.rmtree(tmp_path / "here")
    assert committed_there(tmp_path) == ["step_00000002", "step_00000004"]
    (key,) = [key for key in objects(tmp_path) if "step_00000004" in key and key.endswith(name)]
    spoil(boto3.client("s3"), key, how)
    assert attempts(run=case("elsewhere"))["exit"] == 0, attempts.log.read_text()
    run_dir = tmp_path / "elsewhere" / "run"
    assert (state(run_dir), history(run_dir)) == (state(undisturbed), history(undisturbed))
    starts = [r.step for r in read_journal(run_dir) if isinstance(r, Event) and r.name == "start"]
    assert starts == [0, 2]
    assert "step_00000004" in attempts.log.read_text()


def is_commit(proxy: FaultyProxy) -> bool:
    return any(seen.method == "PUT" and "COMMIT.json" in seen.path for seen in list(proxy.seen))


@pytest.mark.parametrize("back_after_s", [3.0, None], ids=["for-3-s", "to-the-end"])
def test_a_store_that_goes_away_costs_nothing_and_what_is_pending_is_said(
    back_after_s: float | None, server: str, case: Callable[..., dict], undisturbed: Path, tmp_path: Path
) -> None:
    with FaultyProxy(server, faults=False).running() as proxy:
        attempts = RemoteAttempts(tmp_path / "err", AWS_ENDPOINT_URL=proxy.url)
        quick = SETTINGS | {"data.store.attempts": 3}  # a request is given up after half a second
        waits = {"in_step": False, "finish_wait_s": 60.0 if back_after_s else 1.0, "settings": quick}
        first = attempts(run=case(**waits), beside=True)
        give_up_s = time.monotonic() + 60
        while not is_commit(proxy):
            assert time.monotonic() < give_up_s, attempts.log.read_text()
            time.sleep(0.01)
        proxy.down = True
        if back_after_s:
            time.sleep(back_after_s)
            proxy.down = False
        ended = attempts(wait=first["pid"])
        if back_after_s is None:
            assert ended["exit"] == 3, attempts.log.read_text()
            said = attempts.log.read_text().splitlines()[-1]
            assert "/run lacks " in said
            assert "type the same command with --name run on this machine to ship them" in said
            proxy.down = False
            ended = attempts(run=case(**waits))
        assert ended["exit"] == 0, attempts.log.read_text()
        assert_as_undisturbed(tmp_path / "here" / "run", undisturbed)
        shutil.rmtree(tmp_path / "here")
        assert attempts(run=case("third"))["exit"] == 0, attempts.log.read_text()
        attempts.close()
    assert_as_undisturbed(tmp_path / "third" / "run", undisturbed)


def words(shards: str, runs: str, machine: Path) -> list[str]:
    """What is typed for one rank."""
    typed = SETTINGS | {
        "launch.use_gpu": "no",
        "data.store.cache_dir": str(machine),
        "data.store.attempts": 3,
    }
    settings = [word for name, value in typed.items() for word in (f"--{name}", str(value))]
    return ["--shards", shards, "--runs", runs, *settings]


def torchrun(shards: str, runs: str, machine: Path) -> tuple[dict, str]:
    """RESULT and errors of one rank."""
    command = [sys.executable, "-m", "pipeline.launch.torchrun", *words(shards, runs, machine)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=180
    )
    return json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT ")), done.stderr


def test_torchrun_keeps_a_run_at_an_address_and_another_machine_has_it_whole(
    server: str, shards: str, undisturbed: Path, tmp_path: Path
) -> None:
    runs = f"s3://runs/{tmp_path.name}"
    first, errors = torchrun(shards, runs, tmp_path / "one")
    assert (first["status"], first["step"]) == ("ok", 6), errors
    assert first["checkpoint"].startswith(f"{runs}/torchrun/checkpoints/step_0000000")
    shutil.rmtree(tmp_path / "one")
    second, errors = torchrun(shards, runs, tmp_path / "two")
    assert (second["status"], second["miou"]) == ("ok", first["miou"]), errors
    (run_dir,) = (tmp_path / "two").glob("ccs-shards-*/runs/*/torchrun")
    assert_as_undisturbed(run_dir, undisturbed)


def test_what_forbids_a_run_at_an_address_is_one_line(
    server: str, shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    away = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
    with serving("s3", tmp_path) as no_conditions:
        (tmp_path / "bucket").mkdir()
        for runs, environment, exit_code, said in (
            ("s3://absent/x", {}, 3, "its bucket is not there (404 NoSuchBucket); make it"),
            ("s3://runs/x", away, 2, "is for one machine"),
            ("s3://bucket/x", {"AWS_ENDPOINT_URL": f"http://{no_conditions}"}, 3, "If-None-Match"),
            (
                "s3://bucket/x",
                {"AWS_ENDPOINT_URL": f"http://{no_conditions}", "AWS_SECRET_ACCESS_KEY": "x"},
                3,
                "403",
            ),
            ("s3://runs/x", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, 3, "is unreachable: 3 tries"),
        ):
            with monkeypatch.context() as patch:
                for name, value in environment.items():
                    patch.setenv(name, value)
                assert main(words(shards, runs, tmp_path / "copies")) == exit_code
            errors = capfd.readouterr().err
            assert said in errors.splitlines()[-1]
            assert errors.count("\n") == 1, errors
    assert not list((tmp_path / "copies").glob("ccs-shards-*/runs/*/torchrun"))
