"""`fit()` in real processes: nothing lost or repeated over stops and world sizes; evaluation is exact."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from pipeline.train import checkpoint
from tests.fit_attempts import Attempt, run_attempts

TRAIN_IMAGES, VAL_IMAGES = 13, 5
SETTINGS = {
    "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
    "model.backbone.base_width": 8, "model.head.dim": 16, "train.batch_global": 6, "train.steps": 12,
    "train.evaluate_every": 6, "train.checkpoint_every": 4, "train.precision": "float32",
    "train.metrics_every": 3, "train.ema_decay": 0.9, "train.sync_batch_norm": True, "train.pictures": 2,
}  # fmt: skip


def run_attempt(
    shards: str, run_dir: Path, size: int, attempt: str, stop_step: int | None = None, **more
) -> list:
    """What each rank reports of one attempt."""
    (reports,) = run_attempts(shards, size, [Attempt(run_dir, attempt, SETTINGS | more, stop_step)])
    return reports


@pytest.fixture(scope="module")
def attempts(shards, tmp_path_factory):
    """One run, stopped thrice (on the wish of the last rank alone) and finished at other world sizes."""
    run_dir = tmp_path_factory.mktemp("elastic")
    plan = [(2, 3), (2, 2), (1, 2), (3, None)]
    reports = [run_attempt(shards, run_dir, size, f"a{n}", stop) for n, (size, stop) in enumerate(plan)]
    return run_dir, reports


def test_stopped_and_resumed_at_other_world_sizes_each_position_is_consumed_once(attempts):
    _, reports = attempts
    steps = [report[0]["result"]["step"] for report in reports]
    assert steps == [
        4,
        6,
        9,
        12,
    ]  # a wish is heard one step late, and in an evaluation, as at step 6, at once
    assert [r[0]["result"]["status"] for r in reports] == ["preempted", "preempted", "preempted", "ok"]
    consumed = Counter(position for report in reports for rank in report for position in rank["consumed"])
    assert consumed == Counter(range(12 * 6))


def test_all_ranks_take_equally_many_samples(attempts):
    _, reports = attempts
    for report in reports:
        assert len({len(rank["consumed"]) for rank in report}) == 1


def test_evaluation_counts_every_labelled_pixel_once_on_any_number_of_ranks(attempts):
    _, reports = attempts
    pixels = VAL_IMAGES * 48 * 64
    evaluated = [r for report in reports for r in report[0]["recorded"] if r[:1] == ["table"]]
    iou_tables = [rows for _, _, key, rows in evaluated if key == "val/iou_per_class"]
    assert len(iou_tables) == 2  # steps 6 (one rank) and 12 (three ranks, five images)
    for rows in iou_tables:
        assert sum(labelled for _, _, labelled in rows) == pixels


def test_checkpoints_are_those_of_stops_schedule_and_best(attempts):
    run_dir, reports = attempts
    events = [e for report in reports for e in report[0]["recorded"] if e[0] == "event"]
    assert {step for _, step, name, _ in events if name == "commit"} >= {4, 6, 8, 9, 12}
    newest = checkpoint.newest_checkpoint(run_dir)
    assert newest is not None
    assert checkpoint.step_of(newest) == 12
    best = checkpoint.best_checkpoint(run_dir)
    result = reports[-1][0]["result"]
    assert best is not None
    assert checkpoint.step_of(best) == result["best_step"]
    assert checkpoint.read_checkpoint(best).card.miou == result["miou"]


def test_a_run_that_is_finished_already_does_nothing_more(attempts, shards):
    run_dir, reports = attempts
    (again,) = run_attempt(shards, run_dir, 1, "again")
    assert again["consumed"] == []
    assert again["result"]["miou"] == reports[-1][0]["result"]["miou"]


def test_two_ranks_stopped_and_resumed_end_bit_for_bit_as_undisturbed(shards, tmp_path):
    # Every rank's own BatchNorm statistics, of which rank 0's are kept; accumulation; averaged weights.
    more = {"train.sync_batch_norm": False, "train.accumulation": 3, "train.steps": 7}
    run_attempt(shards, tmp_path / "whole", 2, "a", **more)
    run_attempt(shards, tmp_path / "parts", 2, "a", stop_step=2, **more)
    run_attempt(shards, tmp_path / "parts", 2, "b", **more)
    newest = [checkpoint.newest_checkpoint(tmp_path / name) for name in ("whole", "parts")]
    assert [checkpoint.step_of(folder) for folder in newest] == [7, 7]
    for name in (checkpoint.WEIGHTS, checkpoint.AVERAGED, checkpoint.OPTIMIZER):
        expected, found = (checkpoint.read_tensors(folder, name) for folder in newest)
        assert expected.keys() == found.keys()
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
