"""Loader workers that are killed, stopped or broken: the same pixels, or one clear error; never a hang."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from pipeline import errors
from pipeline.config import DataConfig, StoreConfig
from pipeline.data.crop_writer import Cost
from pipeline.data.dataset import ShardDataset
from pipeline.data.loader import TrainLoader
from pipeline.data.plan import EpochPlan
from pipeline.data.slots import SlotRing
from pipeline.data.tasks import Reply, Setup, Task
from pipeline.data.worker_pool import MAX_DEATHS, WorkerPool
from pipeline.errors import PipelineError, ShardError, WorldStateError
from pipeline.world import World

CONFIG = DataConfig(
    input_height=32, input_width=48, crop_height=24, crop_width=40, streams=3, block=4, prefetch=2,
    loader_workers=2,
)  # fmt: skip
ROOT = Path(__file__).parents[3]
HEAVY = {"torch", "ray", "mlflow", "webdataset", "smart_open", "boto3", "requests", "PIL"}


def loader(packed: str, batch: int = 2, **changes) -> TrainLoader:
    config = dataclasses.replace(CONFIG, **changes)
    return TrainLoader(ShardDataset.open(packed, "train"), config, 11, World(), batch)


def pixels(batch) -> tuple[tuple[int, ...], bytes, bytes]:
    return batch.positions, batch.image_BHW3.tobytes(), batch.label_BHW.tobytes()


def first(made: TrainLoader, count: int):
    batches = made.batches(0)
    got = [pixels(next(batches)) for _ in range(count)]
    batches.close()
    return got


def workers() -> list[psutil.Process]:
    """Those that live, in the order in which they were started; other tests have other children."""
    found = []
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # a zombie, which has no command line, is one of those
            found += [process] if "pipeline.data.worker" in process.cmdline() else []
    return sorted(found, key=lambda process: process.create_time())


@pytest.fixture
def calm():
    """Every worker is gone when the test is over."""
    yield
    assert workers() == []


@pytest.fixture
def hanging(own) -> str:
    """Shards of which one is a pipe that nobody writes to: whoever opens it waits for ever."""
    dataset = ShardDataset.open(own, "train")
    shard = EpochPlan(dataset.split.counts, 11, 3, 4).at([5])[0, 1]
    path = Path(own, dataset.split.shards[shard].name)
    path.unlink()
    os.mkfifo(path)
    return own


def test_workers_killed_over_and_over_change_no_pixel_and_each_is_an_event(packed, caplog, calm):
    alone = first(loader(packed, loader_workers=0), 40)
    made = loader(packed, loader_workers=3)
    batches, got = made.batches(0), []
    rng = np.random.default_rng(0)
    for _ in range(40):
        got.append(pixels(next(batches)))
        if rng.random() < 0.5:
            rng.choice(np.array(workers())).kill()
    batches.close()
    assert got == alone
    events = [record for record in caplog.records if "was ended by SIGKILL; another one" in record.message]
    assert made.usage().restarts == len(events) > 10
    assert made.usage().samples >= 80


def test_a_worker_killed_before_it_is_ready_is_replaced(packed, calm):
    pool, ring, tasks = pool_with_tasks(packed, count=4)
    for process in workers():
        process.kill()
    pool.submit(tasks)
    assert sorted(answers(pool, 4)) == [0, 1, 2, 3]
    pool.close()
    ring.close()


def test_a_worker_that_is_stopped_is_replaced_once_it_is_late(packed, caplog, calm):
    alone = first(loader(packed, loader_workers=0), 20)
    made = loader(packed, worker_timeout_s=0.3)
    batches = made.batches(0)
    got = [pixels(next(batches))]
    workers()[0].suspend()
    got += [pixels(next(batches)) for _ in range(19)]
    batches.close()
    assert got == alone
    assert made.usage().restarts == 1
    assert "loader worker 0 said nothing for 0.3 s; another one reads its" in caplog.text


def test_time_in_which_the_loader_does_not_wait_is_not_held_against_a_worker(packed, calm):
    pool, ring, tasks = pool_with_tasks(packed, count=2, worker_timeout_s=0.2)
    pool.submit(tasks[:1])
    assert answers(pool, 1) == [0]
    (process,) = workers()
    process.suspend()
    pool.submit(tasks[1:])
    for _ in range(1000):  # however often somebody looks in
        assert pool.replies(wait=False) == []
    process.resume()
    assert answers(pool, 1) == [1]
    assert pool.restarts == 0
    pool.close()
    ring.close()


def test_workers_that_cannot_start_are_one_error_with_their_last_words(packed, tmp_path, monkeypatch, calm):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1 is not there')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(WorldStateError) as caught:
        next(loader(packed).batches(0))
    assert f"loader workers do not start: {MAX_DEATHS} in a row" in str(caught.value)
    assert "status 1 (ImportError: libGL.so.1 is not there)" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sample_over_which_every_worker_hangs_is_one_error_that_names_it(hanging, calm):
    made = loader(hanging, batch=1, worker_timeout_s=0.1)
    with pytest.raises(WorldStateError) as caught:
        for _ in zip(range(20), made.batches(0), strict=False):
            pass
    found = str(caught.value)
    assert f"{MAX_DEATHS} loader workers ended over 'city" in found
    assert "of train/train-00000" in found
    assert "said nothing for 0.1 s" in found
    assert "--data.worker_timeout_s" in found


@pytest.mark.parametrize("count", [0, 2])
def test_an_absent_shard_is_the_same_error_at_the_same_sample_with_and_without_workers(own, count, calm):
    dataset = ShardDataset.open(own, "train")
    shard = EpochPlan(dataset.split.counts, 11, 3, 4).at([5])[0, 1]
    made = loader(own, batch=1, loader_workers=count)
    batches = made.batches(0)
    Path(own, dataset.split.shards[shard].name).unlink()
    absent = [int(s) == shard for _, s, _ in EpochPlan(dataset.split.counts, 11, 3, 4).at(range(6))]
    for _ in range(absent.index(True)):
        next(batches)
    with pytest.raises(ShardError, match=r"is listed but cannot be opened: No such file"):
        next(batches)


@pytest.mark.parametrize(
    "kind",
    [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, PipelineError)],
)
def test_every_error_arrives_as_the_type_that_was_raised(kind):
    reply = Reply.from_list(json.loads(Reply(7, Cost(0.5, 0.25), kind('of "x"\n')).line()))
    assert (reply.number, reply.cost) == (7, (0.5, 0.25))
    assert type(reply.error) is kind
    assert str(reply.error) == 'of "x"\n'


def test_what_a_worker_is_told_arrives_as_it_was(packed):
    dataset = ShardDataset.open(packed, "train")
    task = Task(3, 1, 0, 12345678901234, dataset.ref(1, 2))
    assert Task.from_list(json.loads(task.line())) == task
    config = dataclasses.replace(CONFIG, store=StoreConfig(cache_dir="/x y", attempts=2))
    setup = Setup("s3://bucket/ü", 19, config, 5, 2, defer_colour=True)
    assert Setup.from_line(setup.line()) == setup


def test_a_server_has_used_up_its_own_tries_before_a_worker_is_called_late():
    config = dataclasses.replace(CONFIG, worker_timeout_s=5.0, store=StoreConfig(timeout_s=3.0, attempts=4))
    assert Setup("/a/folder", 19, config, 0, 1, defer_colour=False).timeout_s == 5.0
    assert Setup("https://host/shards", 19, config, 0, 1, defer_colour=False).timeout_s >= 5.0 + 3.0 * 4


def test_far_more_tasks_than_a_socket_takes_neither_block_nor_get_lost(packed, calm):
    pool, ring, tasks = pool_with_tasks(packed, count=3000)
    pool.submit(tasks)
    assert answers(pool, 3000) == list(range(3000))
    pool.close()
    ring.close()


def pool_with_tasks(packed: str, count: int, **changes) -> tuple[WorkerPool, SlotRing, list[Task]]:
    """One worker, and tasks that all fill the same row."""
    dataset = ShardDataset.open(packed, "train")
    setup = Setup(packed, 19, dataclasses.replace(CONFIG, **changes), 11, 1, defer_colour=False)
    ring = SlotRing(setup.layout, shared=True)
    pool = WorkerPool(1, setup, ring.descriptor)
    slot, _ = ring.take()
    return pool, ring, [Task(number, slot, 0, number, dataset.ref(0, number % 3)) for number in range(count)]


def answers(pool: WorkerPool, count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        found += [reply.number for reply in pool.replies(wait=True) if reply.error is None]
    return found


def test_a_consumer_that_drops_its_batches_keeps_slots_and_memory_as_they_are(packed, calm):
    batches = loader(packed, crop_height=16, crop_width=16).batches(0)
    for _ in range(300):
        next(batches)
    slots, before = num_slots(), resident_bytes()
    for _ in range(3000):
        next(batches)
    assert num_slots() == slots <= CONFIG.prefetch * CONFIG.loader_workers + 2
    assert resident_bytes() - before < 2 * 2**20
    batches.close()


def test_a_consumer_that_keeps_its_batches_finds_them_unchanged_and_never_waits_for_a_slot(packed, calm):
    batches = loader(packed).batches(0)
    kept = [next(batches) for _ in range(60)]
    tensors = [torch.from_numpy(next(batches).image_BHW3).permute(0, 3, 1, 2) for _ in range(60)]
    assert num_slots() >= 120
    alone = loader(packed, loader_workers=0).batches(0)
    for batch in kept:
        assert pixels(batch) == pixels(next(alone))
    for tensor in tensors:
        assert np.array_equal(tensor.permute(0, 2, 3, 1).numpy(), next(alone).image_BHW3)
    batches.close()


def num_slots() -> int:
    return Path("/proc/self/maps").read_text().count("loader-slots")


def resident_bytes() -> int:
    return sum(process.memory_info().rss for process in [psutil.Process(), *workers()])


def test_usage_says_what_reading_cost_and_who_read(packed):
    for count in (0, 2):
        made = loader(packed, loader_workers=count)
        first(made, 5)
        usage = made.usage()
        assert (usage.workers, usage.restarts) == (count, 0)
        assert 10 <= usage.samples <= 10 + 2 * CONFIG.prefetch * count
        assert 0.0 < usage.store_s < usage.decode_s < 10.0


TRAINER = """
    import os, sys, signal
    sys.path.insert(0, {root!r})
    import psutil
    from pipeline.config import DataConfig
    from pipeline.data.dataset import ShardDataset
    from pipeline.data.loader import TrainLoader
    from pipeline.world import World

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
    # Seed 0 reaches the hanging shard within the first epoch: 11 samples, of which 8 are read ahead.
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


def test_what_a_worker_logs_is_logged_here(packed, tmp_path, monkeypatch, caplog, calm):
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
        import logging, threading, time

        def speak():
            while not logging.getLogger().handlers:
                time.sleep(0.01)
            logging.getLogger("pipeline.there").warning("tried %d times", 3)

        threading.Thread(target=speak, daemon=True).start()
    """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    caplog.set_level(logging.INFO)
    pool, ring, (task,) = pool_with_tasks(packed, count=1)
    while "tried 3 times" not in caplog.text:
        pool.submit([task])
        answers(pool, 1)
    pool.close()
    ring.close()
    (record,) = (record for record in caplog.records if record.message == "tried 3 times")
    assert (record.name, record.levelname) == ("pipeline.there", "WARNING")
