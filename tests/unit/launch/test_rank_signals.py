"""A rank hears its first SIGTERM as a wish, and dies at its second."""

import os
import subprocess
import sys
from pathlib import Path

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
