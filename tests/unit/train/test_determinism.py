"""What a deterministic run asks of its process, and of the one that goes on with it."""

import os

import pytest
import torch
from torch import nn

from pipeline.config import TrainConfig
from pipeline.errors import CheckpointError
from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.train.determinism import (
    build_reduction,
    refuse_other_surroundings,
    settle_kernels,
    surroundings,
)
from pipeline.train.fixed_order import FixedOrder
from pipeline.train.loop import fit
from pipeline.train.reduce import SingleProcess
from pipeline.world import World

CPU = torch.device("cpu")


@pytest.fixture
def torchs_state():
    """Whatever a test settles is as before afterwards."""
    before = torch.get_num_threads(), os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    yield
    settle_kernels(TrainConfig(), 1)
    torch.set_num_threads(before[0])
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.usefixtures("torchs_state")
@pytest.mark.parametrize("mode", ["exact", "elastic"])
def test_kernels_threads_and_the_workspace_are_settled_and_off_takes_the_kernels_back(mode):
    torch.set_num_threads(1)
    settle_kernels(TrainConfig(determinism=mode), threads=2)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 2
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert not torch.backends.cudnn.benchmark
    settle_kernels(TrainConfig(), threads=1)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark


def test_a_rank_alone_reduces_only_for_elastic():
    kinds = {
        mode: type(build_reduction(nn.Linear(2, 2), TrainConfig(determinism=mode), World(), CPU))
        for mode in ("off", "exact", "elastic")
    }
    assert kinds == {"off": SingleProcess, "exact": SingleProcess, "elastic": FixedOrder}


@pytest.mark.parametrize(
    ("mode", "change", "refused"),
    [
        ("exact", {"world": 2}, "workers 3, now 2"), ("elastic", {"world": 2}, ""),
        ("exact", {"threads": 2}, "--launch.threads_per_worker 1, now 2"),
        ("elastic", {"threads": 2}, "--launch.threads_per_worker 1, now 2"),
        ("off", {"world": 2, "threads": 2}, ""),
    ],
)  # fmt: skip
def test_what_would_change_the_bits_is_refused_at_a_resume(mode, change, refused):
    def found(world=3, threads=1):
        settings = {"train.determinism": mode, "launch.threads_per_worker": threads}
        return surroundings(with_settings(recipe("laptop"), settings), World(0, world), CPU)

    refuse_other_surroundings(found(), found())
    if not refused:
        refuse_other_surroundings(found(), found(**change))
        return
    with pytest.raises(CheckpointError, match=refused):
        refuse_other_surroundings(found(), found(**change))
    with pytest.raises(CheckpointError, match=r"torch 2\.0\.0, now"):
        refuse_other_surroundings(found() | {"torch": "2.0.0"}, found())


@pytest.mark.usefixtures("torchs_state")
def test_a_run_goes_on_with_as_many_threads_as_it_began_with(shards, tmp_path, surroundings):
    settings = {
        "data.input_height": 32, "data.input_width": 32, "data.crop_height": 32, "data.crop_width": 32,
        "model.backbone.depth": 10, "model.backbone.base_width": 8, "model.head.dim": 8, "train.steps": 1,
        "train.batch_global": 2, "train.pictures": 0, "train.determinism": "exact", "launch.use_gpu": "no",
        "optim.warmup_steps": 0,
    }  # fmt: skip
    config = with_settings(recipe("laptop"), settings)
    fit(config, shards, tmp_path, surroundings())
    other = with_settings(config, {"launch.threads_per_worker": 2, "train.steps": 2})
    with pytest.raises(CheckpointError, match=r"--launch\.threads_per_worker 1, now 2"):
        fit(other, shards, tmp_path, surroundings("b"))
