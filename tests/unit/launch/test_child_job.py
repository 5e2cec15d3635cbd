"""A child job that is silent, stubborn, or left alone by an interrupt."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.launch import child_job
from pipeline.launch.child_job import run_child

ROOT = Path(__file__).resolve().parents[3]
SILENT = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
PARENT = f"""
import sys
from pipeline.launch.child_job import run_child
from pipeline.launch.stop_signals import StopSignals
deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" if sys.argv[1] == "deaf" else ""
with StopSignals() as signals:
    code, result = run_child([sys.executable, "-c", deaf + {SILENT!r}], lambda l: print(l, flush=True),
                             signals.stop_wanted)
print("ended", code, result, flush=True)
"""


def start_parent(kind: str) -> tuple["subprocess.Popen[str]", int]:
    """A parent whose child has begun to be silent, and the child's number."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, kind],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def test_lines_are_shown_and_the_result_is_kept() -> None:
    said = "print('one'); print('two'); print('RESULT {\"exit_code\": 3}'); raise SystemExit(3)"
    shown: list[str] = []
    assert run_child([sys.executable, "-c", said], shown.append, lambda: False) == (3, {"exit_code": 3})
    assert shown == ["one", "two"]


def test_sigterm_to_the_parent_alone_ends_a_silent_child_at_once() -> None:
    parent, child = start_parent("polite")
    begin_s = time.monotonic()
    parent.send_signal(signal.SIGTERM)
    out, _ = parent.communicate(timeout=30)
    assert time.monotonic() - begin_s < 4
    assert out.strip() == f"ended {-signal.SIGTERM} None"
    assert not psutil.pid_exists(child)


def test_second_sigterm_leaves_no_child_behind() -> None:
    parent, child = start_parent("deaf")
    parent.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    parent.send_signal(signal.SIGTERM)
    parent.communicate(timeout=30)
    assert parent.returncode != 0
    assert not psutil.pid_exists(child)


def test_interrupt_from_elsewhere_ends_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(child_job, "POLL_S", 0.01)
    shown: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_child([sys.executable, "-c", SILENT], shown.append, interrupt)
    assert not [
        p for p in psutil.Process(os.getpid()).children() if "time.sleep(60)" in " ".join(p.cmdline())
    ]
