"""`train.determinism` in real processes: the same bits after a stop, and at other world sizes.

The shipped segmenter, with BatchNorm, dropout, augmentation, averaged weights and accumulation. Gradients
travel in other groups in some of the attempts, which may change nothing either.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from pipeline.train import checkpoint, metrics
from tests.fit_attempts import Attempt, run_attempts

STEPS, STOP = 5, 2
SETTINGS = {
    "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
    "model.backbone.depth": 10, "model.backbone.base_width": 8, "model.head.dim": 16,
    "model.head.dropout": 0.3, "optim.clip_norm": 1.0, "optim.warmup_steps": 0, "train.steps": STEPS,
    "train.batch_global": 12, "train.ema_decay": 0.9, "train.precision": "float32", "train.pictures": 0,
    "train.evaluate_every": 2, "train.checkpoint_every": 100, "train.metrics_every": 1,
    "train.eval_batch_per_rank": 2,
}  # fmt: skip
EXACT = SETTINGS | {"train.determinism": "exact", "train.accumulation": 2, "train.sync_batch_norm": True}
ELASTIC = SETTINGS | {"train.determinism": "elastic", "train.virtual_shards": 12}
STOCK = SETTINGS | {"train.determinism": "off"}
TIMES = {
    metrics.SAMPLES_PER_S, metrics.DATA_WAIT_SHARE, metrics.STORE_S_PER_SAMPLE, metrics.DECODE_S_PER_SAMPLE,
    metrics.CHECKPOINT_STALL_S, metrics.WORKER_RESTARTS,
}  # fmt: skip


def digest(run_dir: Path) -> str:
    """One hash of the weights, averaged weights and optimizer state that a run ended with."""
    folder = checkpoint.newest_checkpoint(run_dir)
    assert folder is not None
    assert checkpoint.step_of(folder) == STEPS
    found = hashlib.sha256()
    for name in (checkpoint.WEIGHTS, checkpoint.AVERAGED, checkpoint.OPTIMIZER):
        for key, tensor in sorted(checkpoint.read_tensors(folder, name).items()):
            found.update(f"{name} {key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def curves(*reports: list[dict]) -> dict[str, float]:
    """Every number that rank 0 recorded in the attempts of a run, but for what measures time."""
    points: dict[str, float] = {}
    for report in reports:
        for what, step, *more in report[0]["recorded"]:
            if what == "metrics":
                points |= {f"{key} {step}": value for key, value in more[0].items() if key not in TIMES}
            elif what == "table":
                points[f"{more[0]} {step}"] = json.dumps(more[1])
    return points


@pytest.fixture(scope="module")
def exact(shards, tmp_path_factory):
    """Three ranks: whole runs, and such that are stopped and go on in other processes."""
    root = tmp_path_factory.mktemp("exact")
    whole, first, _, stock_first = run_attempts(shards, 3, [
        Attempt(root / "whole", "a", EXACT), Attempt(root / "parts", "a", EXACT, STOP),
        Attempt(root / "stock", "a", STOCK), Attempt(root / "stock_parts", "a", STOCK, STOP),
    ])  # fmt: skip
    assert first[0]["result"]["status"] == stock_first[0]["result"]["status"] == "preempted"
    second, _ = run_attempts(
        shards,
        3,
        [Attempt(root / "parts", "b", EXACT, group_bytes=2**16), Attempt(root / "stock_parts", "b", STOCK)],
    )
    return root, curves(whole), curves(first, second)


def test_three_ranks_stopped_and_resumed_end_bit_for_bit_as_undisturbed(exact):
    root, whole, parts = exact
    assert digest(root / "whole") == digest(root / "parts")
    assert {key.split()[0] for key in whole} >= {
        metrics.LOSS, metrics.GRADIENT_NORM, metrics.VAL_MIOU, metrics.CONFUSION_TABLE, metrics.SCENE_COSINE,
    }  # fmt: skip
    assert whole == parts


def test_three_ranks_of_stock_ddp_do_not(exact):
    """What `exact` is for. Should this fail one day, DDP has learned it, and `exact` may rest on it."""
    root, _, _ = exact
    assert digest(root / "stock") != digest(root / "stock_parts")


@pytest.fixture(scope="module")
def elastic(shards, tmp_path_factory):
    """By name, hash and curves of runs at one world size, and at two or three."""
    root = tmp_path_factory.mktemp("elastic")
    here = {name: root / name for name in ("1", "2", "3", "4", "2-4", "2-1-3")}
    two = run_attempts(shards, 2, [
        Attempt(here["2"], "a", ELASTIC, group_bytes=2**16), Attempt(here["2-4"], "a", ELASTIC, STOP),
        Attempt(here["2-1-3"], "a", ELASTIC, 1),
    ])  # fmt: skip
    one = run_attempts(shards, 1, [Attempt(here["1"], "a", ELASTIC), Attempt(here["2-1-3"], "b", ELASTIC, 1)])
    three = run_attempts(
        shards, 3, [Attempt(here["3"], "a", ELASTIC, group_bytes=2**12), Attempt(here["2-1-3"], "c", ELASTIC)]
    )
    four = run_attempts(shards, 4, [Attempt(here["4"], "a", ELASTIC), Attempt(here["2-4"], "b", ELASTIC)])
    points = {
        "1": curves(one[0]), "2": curves(two[0]), "3": curves(three[0]), "4": curves(four[0]),
        "2-4": curves(two[1], four[1]), "2-1-3": curves(two[2], one[1], three[1]),
    }  # fmt: skip
    ends = [report[0]["result"]["step"] for report in (two[1], two[2], one[1])]
    assert ends == [2, 2, 4]  # a wish is heard in an evaluation, and one step late otherwise
    return {name: (digest(run_dir), points[name]) for name, run_dir in here.items()}


@pytest.mark.parametrize("worlds", ["2", "3", "4"])
def test_any_world_that_divides_the_virtual_shards_ends_with_the_bits_of_one_rank(elastic, worlds):
    assert elastic[worlds] == elastic["1"]


@pytest.mark.parametrize("worlds", ["2-4", "2-1-3"])
def test_a_run_resumed_at_other_worlds_ends_with_the_bits_of_one_rank(elastic, worlds):
    assert elastic[worlds] == elastic["1"]
