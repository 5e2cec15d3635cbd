"""2 and 3 ranks do what 1 rank does: loss and every gradient (float64), and the confusion matrix."""

import json
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from pipeline.config import HeadConfig
from tests.forked_ranks import run_ranks

WORKER = Path(__file__).with_name("gradient_worker.py")
HEADS = {
    "ccs": {"kind": "ccs"},
    "ccs-gate": {
        "fusion": "gate",
        "learn_alpha": True,
        "assignment": "hard",
        "learn_tau": True,
        "ohem_share": 0.3,
        "inter_form": "identity",
        "intra_form": "l1",
        "intra_mean": "batch-class",
        "center_source": "label-image",
        "n_min": 2,
    },
    "ccs-replace": {
        "fusion": "replace",
        "assignment": "pixel-softmax",
        "mass": "squared",
        "inter_form": "softmax",
        "intra_form": "cross-entropy",
        "intra_mean": "pixel",
        "center_source": "global",  # no other gradient reaches these centers
    },
    "ccs-mlp": {
        "fusion": "mlp",
        "mass": "above-chance",
        "mask_ignored": True,
        "class_norm": True,
        "ohem_share": 0.05,
        "inter_form": "softmax",
        "intra_form": "l1",
        "intra_mean": "pixel",
    },
    "ccs-off": {
        "fusion": "off",
        "similarity": "dot",
        "tau": 1.0,
        "p": 1,
        "delta": -0.1,
        "intra_form": "cosine",
        "q": 1,
        "intra_mean": "batch-class",
        "detach_center": True,
        "lambda_balanced": 0.8,
        "n_min": 2,
    },
    "plain": {"kind": "plain", "ohem_share": 0.3, "lambda_balanced": 0.8},
    "ocr": {"kind": "ocr"},
    "deeplabv3plus": {"kind": "deeplabv3plus", "lambda_balanced": 0.8},
}
"""Together every value of every setting that changes what is computed from the whole batch."""


CASES = {name: {"head": head} for name, head in HEADS.items()} | {
    "ccs, summed in a fixed order": {"head": HEADS["ccs"], "determinism": "exact"}
}
WORLD_SIZES = (2, 3)


def run_cases(size: int, folder: Path, cases: dict, shards: str) -> dict:
    ended = run_ranks(size, [WORKER, folder, json.dumps(cases), shards])
    assert [rank.code for rank in ended] == [0] * size, ended
    return torch.load(folder / f"world{size}.pt", weights_only=True)


@pytest.fixture(scope="module")
def results(tmp_path_factory, shards) -> dict[int, dict]:
    """By world size, by case: one of `CASES`, and the world size that the labels are hard for."""
    folder = tmp_path_factory.mktemp("ranks")
    cases = {
        size: {f"{name}-{size}": case | {"ignored_modulus": size} for name, case in CASES.items()}
        for size in WORLD_SIZES
    }
    every = {name: case for group in cases.values() for name, case in group.items()}
    one = run_cases(1, folder, every, shards)
    return {1: one} | {size: run_cases(size, folder, cases[size], shards) for size in WORLD_SIZES}


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_evaluation_on_several_ranks_counts_what_one_rank_counts(results, world_size):
    # Five images: slices are uneven, and a repeat in place of an omission would show.
    one, many = (results[size]["evaluation"]["confusion"] for size in (1, world_size))
    assert one.sum() == 5 * 48 * 64
    assert torch.equal(one, many)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("head", CASES)
def test_ranks_together_compute_what_one_rank_computes(results, head, world_size):
    # Accumulation 2, SyncBatchNorm, unequal valid counts, one rank all 255, a class on one rank only.
    one, many = results[1][f"{head}-{world_size}"], results[world_size][f"{head}-{world_size}"]

    assert many["late"] == [1, sum(range(1, world_size + 1))]
    for name, value in one["summary"].items():
        assert many["summary"][name] == pytest.approx(value, rel=1e-10, abs=1e-12), name
    assert one["grads"].keys() == many["grads"].keys()
    largest = max(gradient.abs().max() for gradient in one["grads"].values())
    for name, gradient in one["grads"].items():
        torch.testing.assert_close(many["grads"][name], gradient, rtol=1e-8, atol=1e-11 * largest, msg=name)
    for name, value in one["state"].items():  # weights after the step, BatchNorm's running statistics
        torch.testing.assert_close(many["state"][name], value, rtol=1e-8, atol=1e-11, msg=name)
    # The comparison is not empty: every parameter received a gradient, every loss term is at work.
    idle = [name for name, gradient in one["grads"].items() if not gradient.abs().max() > 0]
    assert idle == []
    terms = ["train/loss_ce", "train/loss_coarse", "train/loss_balanced"]
    terms += ["train/loss_inter", "train/loss_intra"] if "ccs" in head else []
    assert all(one["summary"][term] > 0 for term in terms)


def test_the_cases_hold_every_form():
    fields = ("inter_form", "intra_form", "intra_mean", "center_source", "fusion", "assignment", "mass",
              "similarity", "kind")  # fmt: skip
    hints = get_type_hints(HeadConfig)
    for field in fields:
        held = {getattr(HeadConfig(**settings), field) for settings in HEADS.values()}
        assert held == set(get_args(hints[field])), field
