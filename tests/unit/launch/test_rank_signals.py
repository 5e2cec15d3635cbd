"""A rank hears its first SIGTERM as a wish, dies at its second, and sees what Ray's watcher left for it."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.launch import rank_signals

ROOT = Path(__file__).resolve().parents[3]
TWICE = """
import os, signal, time
from pipeline.launch import rank_signals
rank_signals.hear_sigterm()
os.kill(os.getpid(), signal.SIGTERM)
print("told" if rank_signals.told_to_go() else "deaf", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(20)
print("survived", flush=True)
"""


def test_first_sigterm_is_a_wish_and_the_second_ends_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWICE], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (-15, "told\n"), done.stderr


@pytest.mark.parametrize("info", [None, "node 3 goes at noon"])
def test_drain_of_a_node_is_seen_in_what_the_watcher_left_without_asking_anybody(
    info: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(preemption_context=SimpleNamespace(preemption_info=info))
    monkeypatch.setattr(rank_signals, "get_train_context", lambda: context)
    assert rank_signals.told_to_go() == (info is not None)
