"""A worker lives exactly as long as the process that it works for, and starts light."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3]
HEAVY = {"torch", "ray", "mlflow", "webdataset", "smart_open", "boto3", "requests", "PIL"}
TRAINER = """
    import os, sys, signal
    sys.path.insert(0, {root!r})
    import psutil
    from pipeline.config import DataConfig
    from pipeline.data.dataset import ShardDataset
    from pipeline.data.loader import TrainLoader
    from pipeline.world import World

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell began the tests with &
    if {deaf}:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    config = DataConfig(crop_height=16, crop_width=16, loader_workers=2)
    made = TrainLoader(ShardDataset.open({packed!r}, "train"), config, 0, World(), 1)
    batches = made.batches(0)
    try:
        next(batches)
        print(*[child.pid for child in psutil.Process().children()], flush=True)
        for line in sys.stdin:
            next(batches)
            print(made.usage().restarts, flush=True)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture
def trainer(packed, tmp_path):
    """A process that reads batches with two workers: one, and then one for each line it is sent.

    It has no file as its main module, and its folder is one that no interpreter should look into.
    """
    (tmp_path / "numpy.py").write_text("raise ImportError('this is not numpy')")
    started: list[subprocess.Popen] = []

    def start(shards: str = packed, deaf: bool = False) -> tuple[subprocess.Popen, list[psutil.Process]]:
        program = textwrap.dedent(TRAINER.format(root=str(ROOT), packed=shards, deaf=deaf))
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", program], cwd=tmp_path, start_new_session=True, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        started.append(process)
        return process, [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_workers_of_a_killed_trainer_are_gone_at_once(trainer):
    process, children = trainer()
    assert len(children) == 2
    process.kill()
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_workers_in_the_middle_of_a_read_that_hangs_go_with_their_trainer_too(trainer, hanging):
    # Positions 3 and 6 of seed 0 lie in the hanging shard, and 8 are handed out at once.
    process, children = trainer(hanging)
    process.kill()
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_an_interrupt_of_the_whole_group_prints_no_traceback_of_a_worker(trainer):
    process, children = trainer()
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (130, "")
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_a_preemption_of_the_whole_group_leaves_the_workers_to_the_trainer(trainer):
    process, children = trainer(deaf=True)
    os.killpg(process.pid, signal.SIGTERM)
    for _ in range(50):
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "0\n"  # nobody was replaced
    assert all(child.is_running() for child in children)


def test_a_worker_imports_nothing_heavy(packed):
    program = "import sys, pipeline.data.worker; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not HEAVY & {name.partition(".")[0] for name in done.stdout.split()}
