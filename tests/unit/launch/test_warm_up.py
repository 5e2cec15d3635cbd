"""What a worker process loads first, and at which priority."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = """
import os, sys, threading
from pipeline.launch import warm_up

class Loading:
    def find_spec(self, name, path=None, target=None):
        if name == "pipeline.launch.ray_attempt":
            print("loads", os.sched_getscheduler(threading.get_native_id()) == os.SCHED_IDLE)

sys.meta_path.insert(0, Loading())
warm_up.load_everything()
print("goes on", os.sched_getscheduler(0) == os.SCHED_IDLE, "torch" in sys.modules)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads have priorities on Linux alone")
@pytest.mark.parametrize("training", [False, True])
def test_process_loads_in_the_background_where_a_rank_trains_and_works_at_its_own_priority(
    training: bool,
) -> None:
    title = "ray::RayTrainWorker" if training else "ray::TrainController"
    beside = subprocess.Popen([title, "60"], executable="/bin/sleep")  # a child of the same process
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
        )
    finally:
        beside.kill()
        beside.wait()
    assert done.stdout.splitlines() == [f"loads {training}", "goes on False True"], done.stderr


def test_what_cannot_be_loaded_is_told() -> None:
    program = (
        "import sys; sys.modules['pipeline.launch.ray_attempt'] = None\n"
        "from pipeline.launch.warm_up import load_everything; load_everything()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ImportError" in done.stderr or "ModuleNotFoundError" in done.stderr
