import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    NonFiniteLossError,
    Preempted,
    ShardError,
    WorldStateError,
)
from pipeline.launch.job import Result, read_result, result_line, run_job, snake_case
from pipeline.launch.stop_signals import StopSignals

ROOT = Path(__file__).resolve().parents[3]


def test_success_prints_result_last_with_null_for_what_is_not_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work(result: Result) -> None:
        print("a line")
        result["miou"] = float("nan")

    assert run_job("train", work, ("miou", "step")) == 0
    *_, last = capsys.readouterr().out.splitlines()
    result = json.loads(last.removeprefix("RESULT "), parse_constant=pytest.fail)
    assert result.pop("wall_s") >= 0
    assert result == {"job": "train", "status": "ok", "exit_code": 0, "miou": None, "step": None}


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (ConfigError, 2, "config_error"),
        (DatasetError, 2, "dataset_error"),
        (ShardError, 2, "shard_error"),
        (CheckpointError, 2, "checkpoint_error"),
        (WorldStateError, 3, "world_state_error"),
        (Preempted, 75, "preempted"),
        (NonFiniteLossError, 1, "non_finite_loss_error"),
    ],
)
def test_own_errors_end_with_one_line_and_their_exit_code(
    error: type[Exception], code: int, status: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(result: Result) -> None:
        result["step"] = 3
        raise error("first\n  second")

    assert run_job("train", work, ("step", "miou")) == code
    captured = capsys.readouterr()
    assert captured.err == "train: first second\n"
    result = read_result(captured.out.splitlines())
    assert result is not None
    assert (result["status"], result["exit_code"], result["step"]) == (status, code, 3)


def test_bugs_end_with_a_traceback_and_1(capsys: pytest.CaptureFixture[str]) -> None:
    def work(result: Result) -> None:
        raise KeyError("lost")

    assert run_job("train", work) == 1
    captured = capsys.readouterr()
    assert "Traceback" in captured.err
    assert json.loads(captured.out.splitlines()[-1].removeprefix("RESULT "))["status"] == "key_error"


def test_interrupt_ends_with_one_line_and_1(capsys: pytest.CaptureFixture[str]) -> None:
    def work(result: Result) -> None:
        raise KeyboardInterrupt

    assert run_job("train", work) == 1
    captured = capsys.readouterr()
    assert captured.err == "train: interrupted\n"


def test_sigterm_ends_with_one_line_and_result() -> None:
    code = (
        "import sys, time; from pipeline.launch.job import run_job\n"
        "def work(result): print('begun', flush=True); time.sleep(60)\n"
        "sys.exit(run_job('pack', work, ('samples',)))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (1, "pack: interrupted\n")
    result = read_result(out.splitlines()[-1:])
    assert result is not None
    assert (result["status"], result["exit_code"], result["samples"]) == ("terminated", 1, None)


def test_job_that_hears_sigterm_itself_is_not_ended_by_it(capsys: pytest.CaptureFixture[str]) -> None:
    def work(result: Result) -> None:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGTERM)
            result["heard"] = signals.stop_wanted()

    assert run_job("train", work) == 0
    result = read_result(capsys.readouterr().out.splitlines())
    assert result is not None
    assert result["heard"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "as it was before"


@pytest.mark.parametrize(("code", "exit_code"), [(15, 15), ("words", 1)])
def test_exit_of_a_library_keeps_its_code_and_prints_result(
    code: int | str, exit_code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(result: Result) -> None:
        sys.exit(code)

    assert run_job("train", work) == exit_code
    captured = capsys.readouterr()
    assert captured.err == f"train: ended from within ({code})\n"
    result = read_result(captured.out.splitlines()[-1:])
    assert result is not None
    assert (result["status"], result["exit_code"]) == ("system_exit", exit_code)


def test_help_is_no_job_and_prints_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    def work(result: Result) -> None:
        sys.exit(0)

    with pytest.raises(SystemExit):
        run_job("train", work)
    assert not capsys.readouterr().out


def test_process_ends_with_the_exit_code_of_result() -> None:
    code = (
        "import sys; from pipeline.launch.job import run_job; from pipeline.errors import WorldStateError\n"
        "def work(result): raise WorldStateError('full')\n"
        "sys.exit(run_job('train', work))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr == "train: full\n"
    assert done.stdout.startswith("RESULT {")


def test_result_line_is_one_line_that_reads_back() -> None:
    result = {"job": "x", "text": "a\nb", "list": [1.5, float("inf")], "inner": {"k": (1, 2)}}
    line = result_line(result)
    assert "\n" not in line
    assert read_result(["noise", line, "RESULT {broken"]) == {
        "job": "x", "text": "a\nb", "list": [1.5, None], "inner": {"k": [1, 2]},
    }  # fmt: skip


def test_snake_case_of_error_names() -> None:
    assert [snake_case(n) for n in ("ShardError", "NonFiniteLossError", "Preempted")] == [
        "shard_error", "non_finite_loss_error", "preempted",
    ]  # fmt: skip
