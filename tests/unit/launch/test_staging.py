"""What a node is brought before a worker holds a GPU."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.config import StoreConfig
from pipeline.data.shard_table import ShardEntry
from pipeline.data.staging import Staged
from pipeline.launch import staging
from pipeline.recipes import recipe
from pipeline.settings import to_dict, with_settings


@pytest.mark.parametrize("settings", [{"data.train_split": "val"}, {"data.unindexed_train": "/x/{0..3}.tar"}])
def test_a_shard_of_training_and_of_evaluation_is_brought_and_counted_once(
    settings: dict[str, str], shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def stage(root: str, needed: Sequence[ShardEntry], config: StoreConfig) -> Staged:
        asked.extend(shard.name for shard in needed)
        return Staged()

    monkeypatch.setattr(staging, "stage_shards", stage)
    staging._stage(to_dict(with_settings(recipe("laptop"), settings)), str(shards), 0, 2)
    assert asked == sorted(str(path.relative_to(shards)) for path in shards.glob("val/*.tar"))


def test_held_out_drives_are_brought_with_training_and_val_is_not(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def stage(root: str, needed: Sequence[ShardEntry], config: StoreConfig) -> Staged:
        asked.extend(shard.name for shard in needed)
        return Staged()

    monkeypatch.setattr(staging, "stage_shards", stage)
    config = with_settings(recipe("laptop"), {"data.held_out": "train_000001"})
    staging._stage(to_dict(config), str(shards), 0, 2)
    assert asked == ["train/train-000000.tar"]
