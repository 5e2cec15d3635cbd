"""What a SIGKILL cannot show, as it keeps the page cache: all is on the disk before COMMIT says so."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import BackboneConfig, HeadConfig, ModelConfig
from pipeline.data.labels import CITYSCAPES
from pipeline.launch.fence import begin_attempt
from pipeline.launch.run_context import JournaledContext
from pipeline.train import checkpoint
from pipeline.train.checkpoint import COMMIT, SCORE, Score
from pipeline.train.checkpoint_folder import Content
from pipeline.train.model_card import ModelCard
from pipeline.train.saver import Saver
from pipeline.world import World


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """Every flush and every rename of the process, in their order, by the path that it is of."""
    seen: list[tuple[str, Path]] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        fsync(descriptor)
        seen.append(("flush", Path(f"/proc/self/fd/{descriptor}").readlink()))

    def noted_rename(path: Path, target: Path) -> Path:
        seen.append(("rename", Path(target)))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    return seen


def test_files_names_and_journal_are_on_the_disk_before_commit_and_commit_before_it_is_told(
    order: list[tuple[str, Path]], tmp_path: Path
) -> None:
    run_dir = tmp_path / "runs" / "x"
    context = JournaledContext(run_dir, World(), begin_attempt(run_dir))
    saver = Saver(run_dir, context, keep_last=1, restored=None)
    card = ModelCard(
        ModelConfig(BackboneConfig(depth=18, base_width=8), HeadConfig(dim=8)),
        CITYSCAPES,
        32,
        48,
        "abc",
        3,
        None,
    )
    weights = {"w": torch.ones(4)}
    context.metrics(3, {"train/loss": 1.0})
    made, (journal,) = order[:], (run_dir / "journal").iterdir()
    assert [path for _, path in made] == [
        run_dir / "attempts" / "0001",
        *([run_dir / "attempts", run_dir, tmp_path / "runs", run_dir / "journal"]),
    ]
    order.clear()
    saver.save({checkpoint.WEIGHTS: weights, checkpoint.OPTIMIZER: weights}, Content({}, card, {}))
    assert saver.finish() is None
    evaluated = len(order)
    context.metrics(3, {"val/miou": 0.5})
    context.picture("val_pred/scene0", 3, np.zeros((4, 6, 3), np.uint8))
    (picture,) = (run_dir / "pictures").rglob("*.png")
    saver.note_score(Score(0.5, 0.9))
    assert saver.finish() is None
    saver.close()
    context.close()

    (folder,) = checkpoint.list_committed(run_dir)
    committed = order.index(("rename", folder / COMMIT))
    before, after = order[:committed], order[committed + 1 :]
    for path in [*(folder / name for name in checkpoint.committed_files(folder)), folder, journal, run_dir]:
        assert ("flush", path) in before, path
    assert ("flush", folder / f"{COMMIT}.tmp") in before
    assert (
        after.index(("flush", folder))
        < after.index(("flush", folder.parent))
        < after.index(("flush", journal))
    )
    scored = order.index(("rename", folder / SCORE))
    assert ("flush", folder / f"{SCORE}.tmp") in order[:scored]
    for path in (journal, picture):  # else the score would say that nothing is to be evaluated again
        assert ("flush", path) in order[evaluated:scored], path
    assert ("flush", folder) in order[scored:]
