"""A finished model scored again gives what training recorded, to the last bit."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.data.dataset import ShardDataset
from pipeline.inference.predictor import Predictor
from pipeline.inference.scoring import score_split
from pipeline.launch.run_context import JournaledContext
from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.tracking.journal import Metrics, read_journal
from pipeline.train import metrics
from pipeline.train.checkpoint import list_committed
from pipeline.train.loop import fit
from pipeline.world import World

SETTINGS = {
    "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
    "model.backbone.base_width": 8, "model.head.dim": 16, "train.batch_global": 4, "train.steps": 4,
    "train.evaluate_every": 2, "train.checkpoint_every": 2, "train.precision": "float32",
    "train.ema_decay": 0.5, "train.pictures": 0, "launch.use_gpu": "no",
}  # fmt: skip


@pytest.fixture
def run_dir(shards: str, tmp_path: Path) -> Iterator[Path]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    context = JournaledContext(tmp_path / "run", World(), "a")
    fit(with_settings(recipe("laptop"), SETTINGS), shards, tmp_path / "run", context)
    context.close()
    yield tmp_path / "run"
    torch.set_num_threads(before)


def test_a_checkpoint_scored_again_has_exactly_the_miou_that_training_recorded(
    run_dir: Path, shards: str
) -> None:
    dataset = ShardDataset.open(shards, "val")
    recorded = {
        record.step: record.values
        for record in read_journal(run_dir)
        if isinstance(record, Metrics) and metrics.VAL_MIOU in record.values
    }
    folders = list_committed(run_dir)
    assert len(folders) == 2
    for folder in folders:
        predictor = Predictor.load(str(folder))
        again = score_split(predictor, dataset)
        assert again.miou == predictor.card.miou == recorded[predictor.card.step][metrics.VAL_MIOU]
        assert again.pixel_accuracy == recorded[predictor.card.step][metrics.VAL_PIXEL_ACCURACY]
        assert 0 < again.miou < 1


def test_weights_lie_in_memory_as_they_did_in_training(run_dir: Path) -> None:
    predictor = Predictor.load(str(run_dir))
    kernels = [p for p in predictor.model.parameters() if p.ndim == 4]
    assert kernels
    for kernel in kernels:
        _, channels, _, width = kernel.shape
        assert kernel.stride()[1:] == (1, width * channels, channels)
