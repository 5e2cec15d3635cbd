"""What a node is brought before a worker holds a GPU."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.config import StoreConfig
from pipeline.data.packing.pack import pack_cityscapes
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


def test_of_evaluation_only_the_shards_with_held_out_drives_are_brought(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def stage(root: str, needed: Sequence[ShardEntry], config: StoreConfig) -> Staged:
        asked.extend(shard.name for shard in needed)
        return Staged()

    monkeypatch.setattr(staging, "stage_shards", stage)
    monkeypatch.setattr(staging, "first_shards", lambda training, *rest: training.shards[:1])
    pack_cityscapes(str(shards.parent / "tree"), str(tmp_path / "single"), samples_per_shard=1)
    config = with_settings(recipe("laptop"), {"data.held_out": "train_000000,train_000002"})
    staging._stage(to_dict(config), str(tmp_path / "single"), 0, 2)
    assert asked == [f"train/train-00000{number}.tar" for number in (1, 0, 2)]
