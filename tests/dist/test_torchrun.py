"""The same training under torchrun: two real ranks, one RESULT; and what is refused, said once."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.data.dataset import ShardDataset
from pipeline.launch import torchrun
from pipeline.tracking.journal import Event, read_journal
from pipeline.train.checkpoint import newest_checkpoint, step_of
from tests.forked_ranks import run_ranks

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
    "model.backbone.base_width": 8, "model.head.dim": 16, "train.batch_global": 6, "train.steps": 4,
    "train.evaluate_every": 4, "train.checkpoint_every": 2, "train.precision": "float32",
    "train.metrics_every": 2, "train.pictures": 1, "launch.use_gpu": "no",
}  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def words(shards: str, runs: Path, **more: object) -> list[str]:
    typed = SETTINGS | {name.replace("__", "."): value for name, value in more.items()}
    flags = [word for name, value in typed.items() for word in (f"--{name}", str(value))]
    return ["--shards", shards, "--runs", str(runs), "--name", "x", *flags]


def run_two_ranks(
    argv: list[str], program: Sequence[str] = ("-m", "pipeline.launch.torchrun")
) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of each rank, without torchrun, which makes one code of both."""
    return [(rank.code, rank.out, rank.err) for rank in run_ranks(2, [*program, *argv])]


def test_two_ranks_train_to_one_result(shards: str, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "pipeline.launch.torchrun", *words(shards, tmp_path)],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=False, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(results) == 1, done.stdout
    result = json.loads(results[0].removeprefix("RESULT "))
    assert (result["status"], result["exit_code"], result["step"]) == ("ok", 0, 4)
    newest = newest_checkpoint(tmp_path / "x")
    assert newest is not None
    assert step_of(newest) == 4
    assert json.loads((newest / "state.json").read_text())["world_size"] == 2
    commits = [r for r in read_journal(tmp_path / "x") if isinstance(r, Event) and r.name == "commit"]
    assert [commit.step for commit in commits] == [2, 4]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"train__stesp": 3}, "did you mean train.steps?"),  # by every rank, before they meet
        ({"data__train_split": "trian"}, "did you mean train?"),  # by rank 0, when they have met
        ({"data__held_out": "nowhere"}, "no sample of split train is of that drive; its"),
    ],
)
def test_refusal_is_one_line_of_rank_0_and_the_exit_code_of_all(
    more: dict[str, object], said: str, shards: str, tmp_path: Path
) -> None:
    (main_code, out, errors), (other_code, other_out, other_errors) = run_two_ranks(
        words(shards, tmp_path, **more)
    )
    assert (main_code, other_code) == (2, 2), errors + other_errors
    assert said in errors
    assert errors.count("\n") == 1, errors
    assert out.splitlines()[-1].startswith("RESULT ")
    assert (other_out, other_errors) == ("", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("setting", ["launch.max_failures", "tracking.experiment"])
def test_settings_that_only_ray_or_mlflow_would_obey_are_refused(
    setting: str, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert torchrun.main([*words(shards, tmp_path), f"--{setting}", "7"]) == 2
    line = capsys.readouterr().err
    assert f"--{setting} does nothing here" in line
    assert line.count("\n") == 1


def test_rerun_of_a_finished_run_is_a_no_op_that_says_so_and_more_steps_are_refused_with_what_can_be_typed(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert torchrun.main(words(shards, tmp_path)) == 0
    finished = newest_checkpoint(tmp_path / "x")
    (tmp_path / "x" / "result.json").write_text('{"step": 4}')  # as the train job leaves it
    assert "nothing to train" not in capsys.readouterr().out
    assert torchrun.main(words(shards, tmp_path)) == 0
    assert "run=x has done all of its 4 steps: nothing to train" in capsys.readouterr().out
    assert newest_checkpoint(tmp_path / "x") == finished
    assert torchrun.main(words(shards, tmp_path, train__steps=8)) == 3
    line = capsys.readouterr().err
    assert "run x was finished with 4 steps: this command extends none, so type" in line
    assert "jobs/train_cityscapes.py with --extend to go on to 8, --train.steps 4 to see" in line
    assert line.count("\n") == 1
    with pytest.raises(SystemExit):
        torchrun.main(["--help"])
    assert "--extend" not in capsys.readouterr().out, "else this refusal should name it"


@pytest.mark.parametrize(("bytes_a_file", "refused"), [(0, "lease"), (300, "config.json")])
def test_a_disk_that_takes_no_lease_or_no_config_is_one_line_of_rank_0_and_leaves_nothing(
    bytes_a_file: int, refused: str, shards: str, tmp_path: Path
) -> None:
    program = (
        "import resource, sys, tempfile; from pipeline.launch import torchrun\n"
        "tempfile.gettempdir()  # looked for, by writing there, before that is refused\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_a_file}, {bytes_a_file}))  # holds for root too\n"
        "sys.exit(torchrun.main(sys.argv[1:]))"
    )
    (main_code, out, errors), (other_code, _, other_errors) = run_two_ranks(
        words(shards, tmp_path), ("-c", program)
    )
    assert (main_code, other_code) == (3, 3), errors + other_errors
    assert f"cannot write {tmp_path}/x/{refused}: File too large; make room" in errors
    assert (errors.count("\n"), other_errors) == (1, "")
    assert '"status": "world_state_error"' in out.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("damaged", "code"), [([0], 0), ([0, 11], 2)])
def test_ranks_go_on_without_a_damaged_sample_and_stop_together_above_the_limit(
    damaged: list[int], code: int, shards: str, tmp_path: Path
) -> None:
    root = str(shutil.copytree(shards, tmp_path / "shards"))
    dataset = ShardDataset.open(root, "train")
    keys = set()
    for index in damaged:
        ref = dataset.ref(*dataset.locate(index))
        path = Path(root, ref.shard.name)
        data = bytearray(path.read_bytes())
        data[ref.entry.label.offset + ref.entry.label.bytes // 2] ^= 8
        path.write_bytes(data)
        keys.add(ref.entry.key)
    (main_code, out, errors), (other_code, _, other_errors) = run_two_ranks(words(root, tmp_path))
    assert (main_code, other_code) == (code, code), errors + other_errors
    listed = (tmp_path / "x" / "quarantine.jsonl").read_text().splitlines()
    assert {json.loads(line)["key"] for line in listed} == keys
    assert len(listed) == len(keys)
    assert (errors + other_errors).count("[event] quarantined") == len(keys)
    result = json.loads(out.splitlines()[-1].removeprefix("RESULT "))
    assert result["quarantined"] == len(keys)
    if code == 0:
        assert (result["status"], result["step"]) == ("ok", 4)
    else:
        said = f"2 damaged samples, 1 are gone on without; {tmp_path}/x/quarantine.jsonl names them"
        assert said in errors
        assert said in other_errors


def test_a_rank_that_cannot_evaluate_its_part_stops_all_with_its_reason_and_a_checkpoint(
    shards: str, tmp_path: Path
) -> None:
    root = str(shutil.copytree(shards, tmp_path / "shards"))
    dataset = ShardDataset.open(root, "val")
    ref = dataset.ref(*dataset.locate(len(dataset) - 1))  # rank 1's
    path = Path(root, ref.shard.name)
    data = bytearray(path.read_bytes())
    data[ref.entry.label.offset + ref.entry.label.bytes // 2] ^= 8
    path.write_bytes(data)
    for code, _, errors in run_two_ranks(words(root, tmp_path)):
        assert code == 2
        assert f"label of '{ref.entry.key}' at offset {ref.entry.label.offset}" in errors
    assert newest_checkpoint(tmp_path / "x")


def test_a_scene_that_rank_0_cannot_read_for_its_pictures_stops_all_with_the_reason(
    shards: str, tmp_path: Path
) -> None:
    """Rank 0 draws pictures of scenes that other ranks have evaluated, maybe from disks of their own."""
    program = (
        "import sys; from pipeline.errors import ShardError; from pipeline.launch import torchrun\n"
        "from pipeline.train import loop\n"
        "def gone(*_): raise ShardError('the scene is gone')\n"
        "loop.scene_pictures = gone\n"
        "sys.exit(torchrun.main(sys.argv[1:]))"
    )
    for code, _, errors in run_two_ranks(words(shards, tmp_path), ("-c", program)):
        assert code == 2, errors
        assert "the scene is gone" in errors
    assert newest_checkpoint(tmp_path / "x")


def test_a_checkpoint_that_cannot_be_written_stops_all_ranks_with_the_reason_and_keeps_the_one_before(
    shards: str, tmp_path: Path
) -> None:
    program = (
        "import sys; from pipeline.launch import torchrun\n"
        "from pipeline.train.checkpoint_folder import CheckpointFolder\n"
        "put = CheckpointFolder.put\n"
        "def full(self, name, pieces):\n"
        "    if 'step_00000004' in self.path.name: raise OSError(28, 'No space left on device')\n"
        "    put(self, name, pieces)\n"
        "CheckpointFolder.put = full\n"
        "sys.exit(torchrun.main(sys.argv[1:]))"
    )
    flags = words(shards, tmp_path, train__steps=400, train__evaluate_every=400)
    for code, _, errors in run_two_ranks(flags, ("-c", program)):
        assert code == 3, errors
        assert "step_00000004-0001" in errors
        assert "No space left on device; make room" in errors
        assert "Traceback" not in errors
    (kept,) = (tmp_path / "x" / "checkpoints").iterdir()
    assert step_of(kept) == 2
    assert newest_checkpoint(tmp_path / "x") == kept
