"""What `make train` says to type next, and what it uploads, without a cluster."""

import re
from pathlib import Path

import pytest
import torch

from pipeline.errors import ConfigError
from pipeline.launch import make_train
from pipeline.launch.job import Result
from pipeline.launch.local_cluster import LocalCluster
from pipeline.launch.make_train import (
    ROOT,
    MakeFlags,
    _explain_refusal,
    _say_next,
    copy_code,
    make_plan,
)
from pipeline.launch.workers import Room


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


def test_lines_of_a_run_that_mlflow_lacks_something_of_say_what_ships_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = tmp_path / "mine" / "mlflow-pending.json"
    note.parent.mkdir()
    note.write_text("{}")
    line, look, *_ = next_lines(capsys, DONE, runs=str(tmp_path))
    words = f"RUNS={tmp_path} ARGS='--name mine --optim.lr 0.5'"
    assert line == f"[next]  make train {words}   ships what MLflow lacks, once it answers"
    assert "make ui" in look


def shards_of(tree: str, runs: Path) -> Path:
    return Path(make_plan(MakeFlags(cityscapes=tree, runs=str(runs)), []).request.shards)


def test_each_tree_has_a_folder_of_shards_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "runs"
    for place in ("a", "b"):
        (tmp_path / place / "city" / "inner").mkdir(parents=True)
    folders = {shards_of(str(tmp_path / place / "city"), runs) for place in ("a", "b")}
    assert len(folders) == 2
    assert all(re.fullmatch(r"city-[0-9a-f]{6}", folder.name) for folder in folders)
    assert {folder.parent for folder in folders} == {runs / "shards"}
    monkeypatch.chdir(tmp_path / "a" / "city" / "inner")
    assert shards_of("..", runs) == shards_of(str(tmp_path / "a" / "city"), runs)
    assert Path(make_plan(MakeFlags(runs=str(runs)), []).request.shards) == runs / "shards" / "mini-city"


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        ({"status": "world_state_error"}, "RUNS=FOLDER packs and trains in another folder"),
        ({"status": "dataset_error", "refused": None}, "remove that folder, or type another RUNS=FOLDER"),
        ({"status": "dataset_error", "refused": 3}, ""),
        ({"status": "ok"}, ""),
    ],
)
def test_refused_folder_of_shards_is_told_in_the_words_of_make(
    packed: Result, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _explain_refusal(packed, tmp_path)
    line = capsys.readouterr().err
    assert words in line
    assert (str(tmp_path) in line) == bool(words)


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


def test_workers_that_do_not_fit_are_refused_before_anything_is_drawn_or_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_train, "own_room", lambda: Room(cpus=2, gpus=0))
    with pytest.raises(ConfigError, match="--workers 50 does not fit"):
        make_train.make_train({}, MakeFlags(runs=str(tmp_path), workers="50"), [])
    assert not list(tmp_path.iterdir())


def test_a_folder_of_a_user_who_is_not_there_is_one_line() -> None:
    with pytest.raises(ConfigError, match="~nobody-here/x: there is no such user"):
        make_plan(MakeFlags(runs="~nobody-here/x"), [])
