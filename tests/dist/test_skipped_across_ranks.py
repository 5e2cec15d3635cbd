"""A step that is not finite on one of two ranks is left out by both, alike in every bit and word."""

import json
from pathlib import Path

import pytest
import torch

from tests.forked_ranks import run_ranks

WORKER = Path(__file__).with_name("skipping_worker.py")
RANKS = 2
SETTINGS = {
    "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
    "model.backbone.depth": 10, "model.backbone.base_width": 8, "model.head.dim": 8, "train.batch_global": 8,
    "train.steps": 5, "train.evaluate_every": 3, "train.checkpoint_every": 100, "train.pictures": 0,
    "train.precision": "float32", "train.metrics_every": 3, "train.ema_decay": 0.9, "launch.use_gpu": "no",
}  # fmt: skip
VARIANTS = {
    "own-statistics": {"optim.name": "adamw", "optim.clip_norm": 1.0},
    "shared-statistics": {"optim.name": "sgd", "train.sync_batch_norm": True, "train.accumulation": 2},
}
BAD = {"activation": 1, "loss": 3}


@pytest.fixture(scope="module")
def results(shards, tmp_path_factory):
    """By case, what each rank knows in the end."""
    folder = tmp_path_factory.mktemp("skipping")
    cases = {}
    for variant, settings in VARIANTS.items():
        for kind, bad in BAD.items():
            case = {"settings": SETTINGS | settings, "steps": [bad]}
            cases[f"{variant}-{kind}"] = case | {"kind": kind}
            cases[f"{variant}-{kind}-reference"] = case | {"kind": ""}
    bounded = SETTINGS | {
        "train.max_skipped_steps": 1,
        "train.metrics_every": 100,
        "train.evaluate_every": 100,
    }
    cases["too-many"] = {"settings": bounded, "kind": "activation", "steps": [0, 2]}
    ended = run_ranks(RANKS, [WORKER, folder, shards, json.dumps(cases)])
    assert [rank.code for rank in ended] == [0] * RANKS, ended
    loaded = [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]
    return {name: [every[name] for every in loaded] for name in cases}


def assert_equal(expected, found):
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


def keys_of(ranks, step):
    """The keys of a step's global batch, by position, from what both ranks were fed."""
    return [key for _, key in sorted(pair for rank in ranks for pair in rank["consumed"][step])]


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_one_rank_finds_both_leave_out(results, variant, kind):
    # Of `loss` no gradient tells: it is agreed all the same.
    ranks, reference = results[f"{variant}-{kind}"], results[f"{variant}-{kind}-reference"]
    assert [rank["skipped_steps"] for rank in ranks] == [1, 1]
    assert [rank["step"] for rank in ranks] == [5, 5]
    for rank, expected in zip(ranks, reference, strict=True):
        assert_equal(expected["weights"], rank["weights"])
        assert_equal(ranks[0]["weights"], rank["weights"])
    assert_equal(reference[0]["buffers"], ranks[0]["buffers"])


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("variant", VARIANTS)
def test_both_note_the_keys_of_the_whole_global_batch(results, variant, kind):
    ranks = results[f"{variant}-{kind}"]
    keys = keys_of(ranks, BAD[kind] + 1)
    assert len(keys) == 8
    for rank in ranks:
        ((step, fields),) = rank["events"]
        assert (step, fields["samples"]) == (BAD[kind] + 1, keys)


def test_above_the_bound_both_end_at_the_same_step_with_the_same_words(results):
    ranks = results["too-many"]
    assert ranks[0]["error"] == ranks[1]["error"]
    keys = ", ".join(keys_of(ranks, 3)[:3])
    assert "2, allowed are 1; the last is step 3 with loss nan" in ranks[0]["error"]
    assert f"samples {keys}, …" in ranks[0]["error"]
    assert [(rank["step"], rank["skipped_steps"]) for rank in ranks] == [(4, 2), (4, 2)]  # heard a step late
