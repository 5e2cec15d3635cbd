import dataclasses
import errno
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TextIO

import pytest

from pipeline.config import Config, HeadConfig, LaunchConfig, ModelConfig, TrackingConfig
from pipeline.errors import ConfigError, WorldStateError
from pipeline.launch import run_folder
from pipeline.launch.run_folder import (
    finished_result,
    identity,
    lease,
    recorded_config,
    refuse_other_run,
    run_name,
    write_json,
)
from pipeline.settings import with_settings

ROOT = Path(__file__).resolve().parents[3]


def test_made_up_name_tells_the_head_and_differs() -> None:
    plain = Config(model=ModelConfig(head=HeadConfig(kind="plain")))
    assert re.fullmatch(r"plain-[0-9a-f]{4}", run_name(None, plain))
    assert len({run_name(None, plain) for _ in range(20)}) > 15


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".", "..", "-x", "a b", "ä", "x" * 101, "a\n"])
def test_names_that_are_no_plain_folder_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--name"):
        run_name(name, Config())


@pytest.mark.parametrize(
    "name", ["mlartifacts", "mlflow.db", "shards", "mini-city", "predictions", ".hidden"]
)
def test_names_of_what_lies_beside_the_runs_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--name .*{name}"):
        run_name(name, Config())


def test_second_live_job_of_a_name_is_refused_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    hold = (
        "import sys, time; from pathlib import Path; from pipeline.launch.run_folder import lease\n"
        "with lease(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "run")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(WorldStateError, match=f"held by a live job .pid {holder.pid} on "),
            lease(tmp_path / "run"),
        ):
            pass
        holder.kill()
    with lease(tmp_path / "run"):
        assert (tmp_path / "run" / "lease").exists()


def test_lease_leaves_no_folder_where_nothing_began(tmp_path: Path) -> None:
    with lease(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
    with lease(tmp_path / "run"):
        write_json(tmp_path / "run" / "config.json", identity(Config(), {}))
    assert (tmp_path / "run" / "config.json").exists()


def test_lock_won_on_a_removed_file_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, tries = tmp_path / "run", []
    real = fcntl.flock

    def removed_first(file: TextIO, flags: int) -> None:
        tries.append(flags)
        if len(tries) == 1:  # the holder before ends between our open and our lock
            (run_dir / "lease").unlink()
            run_dir.rmdir()
        real(file, flags)

    monkeypatch.setattr(run_folder.fcntl, "flock", removed_first)
    with lease(run_dir):
        assert len(tries) == 2
        assert f"pid {os.getpid()}" in (run_dir / "lease").read_text()


def test_file_system_without_locks_is_not_taken_for_a_live_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file: TextIO, flags: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(run_folder.fcntl, "flock", no_locks)
    with pytest.raises(WorldStateError, match=r"cannot lock .*No locks available"), lease(tmp_path / "run"):
        pass


def test_same_settings_go_on_and_launch_settings_may_change(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", identity(Config(), {"manifest_id": "m"}))
    refuse_other_run(tmp_path, identity(Config(), {"manifest_id": "m"}))
    moved = dataclasses.replace(
        Config(), launch=LaunchConfig(max_failures=9), tracking=TrackingConfig(registered_model="other")
    )
    refuse_other_run(tmp_path, identity(moved, {"manifest_id": "m"}))


def test_other_settings_and_other_data_are_refused_by_name(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", identity(Config(), {"manifest_id": "m"}))
    other = with_settings(Config(), {"optim.lr": 0.5, "train.steps": 7})
    with pytest.raises(WorldStateError) as error:
        refuse_other_run(tmp_path, identity(other, {"manifest_id": "n"}))
    for difference in ("--optim.lr 0.01, now 0.5", "--train.steps 600, now 7", "manifest_id m, now n"):
        assert difference in str(error.value)


def test_recorded_config_reads_back_and_refuses_what_is_none(tmp_path: Path) -> None:
    config = with_settings(Config(), {"train.steps": 7})
    write_json(tmp_path / "config.json", identity(config, {}))
    assert recorded_config(tmp_path / "config.json") == config
    with pytest.raises(ConfigError, match="no such file"):
        recorded_config(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match=r"not a run's config\.json"):
        recorded_config(tmp_path / "broken.json")


def test_result_of_a_finished_run_reads_back_but_not_while_it_is_extended(tmp_path: Path) -> None:
    assert finished_result(tmp_path, 7) is None
    write_json(tmp_path / "result.json", {"miou": 0.5, "step": 7})
    assert finished_result(tmp_path, 7) == {"miou": 0.5, "step": 7}
    assert finished_result(tmp_path, 8) is None


@pytest.mark.parametrize("content", ["", "{", '{"miou": 1}', '{"step": "many"}'])
def test_result_that_cannot_be_read_is_one_clear_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(WorldStateError, match=r"result\.json cannot be read .*; remove it"):
        finished_result(tmp_path, 7)
