"""What `make train` says to type next, and what it uploads, without a cluster."""

from pathlib import Path

import pytest
import torch

from pipeline.launch.job import Result
from pipeline.launch.local_cluster import LocalCluster
from pipeline.launch.make_train import ROOT, MakeFlags, _say_next, copy_code, make_plan


def next_lines(capsys: pytest.CaptureFixture[str], result: Result, **flags: str) -> list[str]:
    _say_next(make_plan(MakeFlags(**flags), ["--name", "mine", "--optim.lr", "0.5"]), result)
    return capsys.readouterr().out.splitlines()


PREEMPTED: Result = {"exit_code": 75, "model_uri": None}
DONE: Result = {"exit_code": 0, "model_uri": "models:/m/1"}


def test_lines_of_a_run_in_another_folder_name_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = next_lines(capsys, PREEMPTED, runs="my runs")
    variables = f"RUNS='{tmp_path}/my runs' ARGS='--name mine --optim.lr 0.5'"
    assert line == f"[next]  make train {variables}   goes on from the checkpoint"
    look = next_lines(capsys, DONE, runs="out")[0]
    assert look.startswith(f"[next]  make ui RUNS={tmp_path}/out   shows")
    (tmp_path / "tree").mkdir()
    (line,) = next_lines(capsys, PREEMPTED, runs="out", cityscapes="tree", workers="2")
    assert line.startswith(
        f"[next]  make train CITYSCAPES={tmp_path}/tree RUNS={tmp_path}/out ARGS='--workers 2 --name mine"
    )


def test_lines_of_a_run_in_the_usual_folder_stay_short(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    (line,) = next_lines(capsys, PREEMPTED)
    assert line.startswith("[next]  make train ARGS='--name mine")
    assert next_lines(capsys, DONE)[0].startswith("[next]  make ui   shows")


def test_upload_is_the_code_and_nothing_else_that_lies_in_the_checkout(tmp_path: Path) -> None:
    folder = copy_code(tmp_path / "code")
    assert {path.name for path in folder.iterdir()} == {"pipeline", "jobs"}
    assert (folder / "jobs" / "train_cityscapes.py").is_file()
    assert not list(folder.rglob("__pycache__"))
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 4 << 20


@pytest.mark.parametrize("usable", [True, False])
def test_head_offers_no_gpu_that_torch_cannot_use(usable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    assert ("--num-gpus=0" in LocalCluster(num_cpus=1)._head_flags()) == (not usable)
