"""Waiting for data: counted every step, evaluation left out, and blamed on what would shorten it."""

import logging
import re
import time

import pytest

from pipeline.data.loader import LoaderUsage
from pipeline.data.store.local import LocalStore
from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.train import data_wait, metrics, progress
from pipeline.train.data_wait import DataWait, WaitWindow
from pipeline.train.loop import fit
from pipeline.train.progress import Progress
from pipeline.train.state import TrainState
from pipeline.world import World


@pytest.mark.parametrize(
    ("workers", "wait_s", "store_s", "decode_s", "bottleneck"),
    [
        (0, 5.0, 1.0, 3.8, "decode"),
        (0, 5.0, 3.0, 1.5, "store"),
        (0, 5.0, 1.0, 0.5, "hand-off"),  # most of the wait was neither
        (2, 5.0, 4.0, 15.0, "decode"),
        (2, 5.0, 15.0, 4.0, "store"),
        (2, 5.0, 2.0, 8.0, "hand-off"),  # workers had nothing to do for half of the time
        (4, 5.0, 0.0, 0.0, "hand-off"),
    ],
)
def test_the_bottleneck_is_what_would_have_to_be_faster(workers, wait_s, store_s, decode_s, bottleneck):
    window = WaitWindow(10.0, wait_s, LoaderUsage(100, store_s, decode_s, workers))
    assert window.share == 0.5
    assert window.bottleneck == bottleneck
    assert window.values()[metrics.STORE_S_PER_SAMPLE] == pytest.approx(store_s / 100)
    assert window.values()[metrics.DECODE_S_PER_SAMPLE] == pytest.approx(decode_s / 100)


@pytest.mark.parametrize(
    ("workers", "decode_s", "bottleneck"), [(0, 0.5, "start"), (2, 0.0, "start"), (2, 18.0, "decode")]
)
def test_idle_workers_in_the_first_window_are_starting(workers, decode_s, bottleneck):
    assert (
        WaitWindow(10.0, 5.0, LoaderUsage(9, 0.0, decode_s, workers), is_first=True).bottleneck == bottleneck
    )


def test_a_window_holds_what_happened_since_the_one_before_without_pauses(monkeypatch):
    now = 100.0
    monkeypatch.setattr(data_wait.time, "perf_counter", lambda: now)
    waits = DataWait(LoaderUsage())
    now = 110.0
    waits.waited(1.5)
    waits.waited(0.5)
    waits.paused(2.0)  # an evaluation
    first = LoaderUsage(8, 1.0, 2.0, workers=2, restarts=1)
    assert waits.window(first) == WaitWindow(8.0, 2.0, first, is_first=True)
    now = 114.0
    waits.waited(1.0)
    second = waits.window(LoaderUsage(12, 1.5, 4.0, workers=2, restarts=1))
    assert second == WaitWindow(4.0, 1.0, LoaderUsage(4, 0.5, 2.0, workers=2, restarts=0))
    assert second.share == 0.25


@pytest.mark.parametrize(
    ("share", "shown"), [(0.0, "data-wait 0%"), (0.10, "data-wait 10%"), (0.23, "data-wait 23% (decode)")]
)
def test_the_bottleneck_is_named_where_more_than_a_tenth_of_the_time_is_waited(share, shown, caplog):
    caplog.set_level(logging.INFO)
    config = recipe("laptop")
    values = dict.fromkeys([*metrics.LOSS_TERMS, metrics.LEARNING_RATE], 0.1)
    state = TrainState(step=config.train.steps)
    Progress(config, World(), state).step_line(state, values | {metrics.DATA_WAIT_SHARE: share}, "decode")
    assert f"img/s  {shown}  eta" in caplog.text


def test_a_slow_store_is_named_in_the_log_line_and_in_the_curves(
    shards, tmp_path, surroundings, monkeypatch, caplog
):
    read = LocalStore.read

    def slow_read(*arguments):
        time.sleep(0.005)  # the storage, not a wait for another thread
        return read(*arguments)

    monkeypatch.setattr(LocalStore, "read", slow_read)
    monkeypatch.setattr(progress, "NOTICEABLE_SHARE", 0.0)  # how slow the rest is depends on the machine
    caplog.set_level(logging.INFO)
    settings = {
        "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
        "model.backbone.base_width": 8, "model.head.dim": 16, "train.batch_global": 4, "train.steps": 4,
        "train.evaluate_every": 4, "train.metrics_every": 2, "train.log_every_s": 0.0, "train.pictures": 0,
        "launch.use_gpu": "no",
    }  # fmt: skip
    context = surroundings()
    result = fit(with_settings(recipe("laptop"), settings), shards, tmp_path, context)
    lines = [record.message for record in caplog.records if record.message.startswith("[train] step")]
    assert len(lines) == 2
    assert all(re.search(r"data-wait \d+% \(store\)  eta", line) for line in lines)
    assert 0.0 < result.data_wait_share <= 1.0
    for step in (2, 4):
        assert context.points[metrics.STORE_S_PER_SAMPLE, step] > 2 * 0.005  # an image and its label
        assert context.points[metrics.DECODE_S_PER_SAMPLE, step] > 0.0
        assert context.points[metrics.WORKER_RESTARTS, step] == 0.0
