"""What a person can get wrong before Ray is started: one clear line, the right exit code."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.launch import ray_cluster
from pipeline.launch.job import Result, run_job
from pipeline.launch.run_folder import identity, lease, write_json
from pipeline.launch.train_job import FIELDS, read_request, train
from pipeline.recipes import recipe

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "connected", lambda *_: pytest.fail("Ray was started"))


def refuse(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[Result, str]:
    """RESULT and the one line on standard error of a job that ends before Ray."""
    code = run_job("train", lambda result: train(result, argv), FIELDS)
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1].removeprefix("RESULT "))
    assert result["exit_code"] == code
    assert set(FIELDS) <= set(result)
    assert captured.err.count("\n") == 1, captured.err
    return result, captured.err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--recipe", "laptp"], "did you mean laptop?"),
        (["--train.stps", "3"], "did you mean train.steps?"),
        (["--name", "a/b"], "--name"),
        (["--config", "/absent/config.json"], "--config /absent/config.json: no such file"),
        (["--config", "x", "--recipe", "laptop"], "leave out one"),
        (["--register", "a/b:c"], "--register 'a/b:c'"),
        (["--register", "  ", "--preflight-only"], "--register ' '"),
        (["--tracking.registered_model", ".x"], "--register '.x'"),
        (["--recipe", "laptop", "--recipe=camvid"], "--recipe was typed twice"),
        (["--name", "shards"], "--name shards"),
        (["--init-from", "models:/x/1"], "--init-from is not in this version yet"),
        (["--extend"], "--extend goes on with a finished run: type its --name"),
        (["--data.train_split", "trian"], "did you mean train?"),
        (
            ["--data.held_out", "train_00001"],
            "no sample of split train is of that drive (did you mean train_",
        ),
        (["--data.held_out", "train"], "takes all 4 samples of split train and leaves none to train on"),
        (["--data.held_out", "train_000001", "--data.val_split", "val"], "leave out --data.val_split, or"),
        (
            ["--data.held_out", "train", "--data.unindexed_train", "/x/{0..9}.tar"],
            "unindexed shards do not list",
        ),
        (["--data.decoded_cache", "s3://b/x"], "--data.decoded_cache s3://b/x: files are kept in a folder"),
        (["--data.decoded_cache", f"{ROOT}/README.md/x"], f"{ROOT}/README.md is a file; type a folder"),
        (
            ["--data.decoded_cache", "~nobody-here/x"],
            "--data.decoded_cache ~nobody-here/x: there is no such user",
        ),
        (["--data.decoded_cache", f"/tmp/{'x' * 300}"], "File name too long; type another"),
        (["--data.store.cache_gb", "1e300"], "data.store.cache_gb must be above 0, at most 1e+09"),
        (["--data.store.timeout_s", "1e300"], "data.store.timeout_s must be above 0, at most 86400"),
        (
            ["--data.store.lookahead", "1" + "0" * 12],
            "data.store.lookahead must be at least 1, at most 16777216",
        ),
        (
            ["--data.unindexed_train", "http://127.0.0.1:1"],
            "name the shards, as in http://127.0.0.1:1{000..012}",
        ),
        (["--data.unindexed_train", "http://{0..3}/x.tar"], "name the shards"),
        (["--data.store.cache_dir", "s3://b/x"], "--data.store.cache_dir s3://b/x: files are kept in a fol"),
        (["--data.unindexed_train", "pipe:touch /tmp/x"], "cannot read shards from pipe:touch /tmp/x: type"),
        (["--data.unindexed_train", "/absent/{0..9}.tar"], "no shards at /absent: no such folder"),
        (["--data.unindexed_train", f"{ROOT}/docs/x-{{0..9}}.tar"], f"{ROOT}/docs/x-0.tar is not there"),
        (
            ["--data.unindexed_train", f"{ROOT}/docs/"],
            f"--data.unindexed_train {ROOT}/docs/: name the shards",
        ),
    ],
)
def test_wrong_words_are_refused_with_2(
    shards: Path, tmp_path: Path, argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result, line = refuse(capsys, "--shards", str(shards), "--runs", str(tmp_path), *argv)
    assert result["exit_code"] == 2
    assert words in line
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize(
    "runs", ["gs://bucket/runs", "https://host/runs", "ssh://host/runs", "s3://a b/runs"]
)
def test_runs_at_an_address_that_cannot_hold_them_are_refused_with_2(
    runs: str, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, line = refuse(capsys, "--shards", str(shards), "--runs", runs)
    assert result["exit_code"] == 2
    assert runs in line


def test_absent_folder_is_refused_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, line = refuse(capsys, "--shards", str(tmp_path / "none"), "--runs", str(tmp_path))
    assert (result["exit_code"], result["status"]) == (2, "shard_error")
    assert str(tmp_path / "none") in line


def test_absent_shard_is_named(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(shards, tmp_path / "shards")
    (tmp_path / "shards" / "val" / "val-000000.tar").unlink()
    result, line = refuse(capsys, "--shards", str(tmp_path / "shards"), "--runs", str(tmp_path / "runs"))
    assert result["exit_code"] == 2
    assert "val/val-000000.tar" in line


def test_too_little_space_is_refused_with_3_naming_path_and_bytes(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 12345, 12345))
    result, line = refuse(capsys, "--shards", str(shards), "--runs", str(tmp_path))
    assert (result["exit_code"], result["status"]) == (3, "world_state_error")
    assert f"no space in --runs: {tmp_path} has 12345 bytes free" in line


def test_runs_below_a_file_is_refused_with_3(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    result, line = refuse(capsys, "--shards", str(shards), "--runs", str(tmp_path / "file" / "runs"))
    assert result["exit_code"] == 3
    assert str(tmp_path / "file") in line


def test_relative_path_inside_a_ray_job_is_refused_with_the_form_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    result, line = refuse(capsys, "--shards", "data/shards")
    assert result["exit_code"] == 2
    assert '--shards "$(pwd)/data/shards"' in line


@pytest.fixture
def as_nobody(shards: Path, tmp_path: Path) -> Iterator[None]:
    """Files of `tmp_path / "closed"` are out of reach, as root's would be too for root itself."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    is_root = os.geteuid() == 0
    if is_root:
        of_pytest = (folder for folder in tmp_path.parents if "pytest-of-" in str(folder))
        for folder in (shards.parent, tmp_path, *of_pytest):
            folder.chmod(0o777)
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        closed.chmod(0o700)


@pytest.mark.parametrize("name", ["data.decoded_cache", "data.store.cache_dir", "data.unindexed_train"])
def test_relative_setting_inside_a_ray_job_is_refused_with_the_form_to_type(
    name: str, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    result, line = refuse(capsys, "--shards", str(shards), f"--{name}", "x/{0..9}.tar")
    assert result["exit_code"] == 2
    assert f'type --{name} "$(pwd)/x/{{0..9}}.tar"' in line


def test_paths_of_settings_become_absolute_and_patterns_keep_their_braces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.chdir(tmp_path)
    words = [
        "--shards",
        "data",
        "--data.store.cache_dir",
        "../c",
        "--data.unindexed_train",
        "y/x-{00..12}.tar",
    ]
    data = read_request(words).config.data
    assert data.store.cache_dir == str(tmp_path.parent / "c")
    assert data.unindexed_train == str(tmp_path / "y" / "x-{00..12}.tar")
    assert read_request(["--shards", "data", "--data.decoded_cache", "d"]).config.data.decoded_cache == str(
        tmp_path / "d"
    )
    remote = "s3://bucket/x-{00..12}.tar"
    words = ["--shards", "data", "--data.unindexed_train", remote]
    assert read_request(words).config.data.unindexed_train == remote


def test_more_processes_than_this_machine_has_cpus_are_refused_before_ray(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    words = ["--workers", "1", "--data.loader_workers", "2", "--launch.use_gpu", "no"]
    result, line = refuse(capsys, "--shards", str(shards), "--runs", str(tmp_path), *words)
    assert result["exit_code"] == 2
    assert "type --data.loader_workers 1" in line


def test_relative_paths_elsewhere_are_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.chdir(tmp_path)
    request = read_request(["--shards", "data", "--runs", "../runs", "--name", "x"])
    assert request.shards == str(tmp_path / "data")
    assert request.run_dir == tmp_path.parent / "runs" / "x"


def test_finished_run_of_other_settings_is_refused_with_3(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = identity(recipe("camvid"), {"manifest_id": "other"})
    (tmp_path / "x").mkdir()
    write_json(tmp_path / "x" / "config.json", held)
    result, line = refuse(capsys, "--shards", str(shards), "--runs", str(tmp_path), "--name", "x")
    assert result["exit_code"] == 3
    assert f"--train.steps {recipe('camvid').train.steps}, now" in line


def test_name_of_a_live_job_is_refused_with_3(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lease(tmp_path / "x"):
        result, line = refuse(capsys, "--shards", str(shards), "--runs", str(tmp_path), "--name", "x")
    assert result["exit_code"] == 3
    assert "run x is held by a live job" in line


def test_the_job_itself_prints_one_line_and_result(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "jobs/train_cityscapes.py", "--shards", str(tmp_path / "none")],
        cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))["exit_code"] == 2


@pytest.mark.parametrize("flag", ["--shards", "--runs", "--data.decoded_cache", "--data.unindexed_train"])
def test_a_path_that_this_user_may_not_look_at_is_one_line(
    flag: str, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], as_nobody: None
) -> None:
    closed = tmp_path / "closed"
    words = {"--shards": str(shards), "--runs": str(tmp_path / "runs"), flag: str(closed / "in" / "x")}
    result, line = refuse(capsys, *(word for pair in words.items() for word in pair))
    assert result["exit_code"] == 2
    assert f"{flag} {closed}/in/x: Permission denied; type another" in line


def test_a_broken_link_in_the_place_of_the_decoded_cache_is_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "absent")
    result, line = refuse(capsys, "--shards", str(shards), "--data.decoded_cache", str(link))
    assert result["exit_code"] == 2
    assert f"{link} is a link to no folder" in line


def test_shards_of_which_this_user_may_see_no_file_are_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], as_nobody: None
) -> None:
    result, line = refuse(capsys, "--shards", str(tmp_path / "closed"), "--runs", str(tmp_path / "runs"))
    assert result["exit_code"] == 2
    assert "manifest.json is listed but cannot be opened: Permission denied" in line
