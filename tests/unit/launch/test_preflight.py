from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.config import BackboneConfig, Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from pipeline.errors import ShardError, WorldStateError
from pipeline.launch import preflight
from pipeline.launch.preflight import bytes_needed, check_run, count_parameters

TINY = ModelConfig(backbone=BackboneConfig(base_width=8))


def test_counting_leaves_the_default_device_and_the_seed_alone() -> None:
    before = torch.get_rng_state()
    count_parameters(Config(model=TINY), 5)
    assert torch.empty(1).device.type == "cpu"
    assert torch.equal(torch.get_rng_state(), before)


def test_bytes_cover_every_kept_checkpoint_with_its_moments() -> None:
    for name, moments in (("sgd", 1), ("adamw", 2)):
        for averaged in (0.0, 0.99):
            train = TrainConfig(keep_last=3, ema_decay=averaged)
            config = Config(optim=OptimConfig(name=name), train=train)  # type: ignore[arg-type]  # both names are
            one_checkpoint = 4 * 10**8 * (1 + moments + bool(averaged))
            assert bytes_needed(config, 10**8) > 4 * one_checkpoint, "three last ones and the best"


def test_facts_of_a_run_that_can_start(shards: Path, tmp_path: Path) -> None:
    checked = check_run(Config(model=TINY), str(shards), tmp_path / "runs" / "x")
    assert checked.training == "4 samples"
    assert not (tmp_path / "runs").exists()


def test_held_out_samples_are_told_beside_those_that_are_trained_on(shards: Path, tmp_path: Path) -> None:
    config = Config(model=TINY, data=DataConfig(held_out="train_000003"))
    assert check_run(config, str(shards), tmp_path / "x").training == "3 samples, 1 held out"


def test_unindexed_shards_are_looked_at_and_not_taken_for_the_evaluated_samples(
    shards: Path, tmp_path: Path
) -> None:
    def checked(name: str) -> str:
        data = DataConfig(unindexed_train=f"{shards}/{name}")
        return check_run(Config(model=TINY, data=data), str(shards), tmp_path / "x").training

    assert checked("train/train-000000.tar") == "1 unindexed shards"
    with pytest.raises(ShardError, match=rf"{shards}/train/train-000007\.tar is not there; type a range"):
        checked("train/train-{000000..000007}.tar")


def test_resumed_run_needs_no_second_room_for_the_checkpoints_that_it_has(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run_dir = Config(model=TINY), tmp_path / "x"
    needed = bytes_needed(config, count_parameters(config, 19))
    written = (needed - preflight.RECORDS_BYTES) // 2
    checkpoint = run_dir / "checkpoints" / "step_00000001-a"
    checkpoint.mkdir(parents=True)
    free = needed - written
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with pytest.raises(WorldStateError, match=f"{free} bytes free, and this run needs {needed} bytes"):
        check_run(config, str(shards), run_dir)
    (checkpoint / "model.safetensors").write_bytes(bytes(written))
    check_run(config, str(shards), run_dir)
    free -= 1
    with pytest.raises(WorldStateError, match="no space"):
        check_run(config, str(shards), run_dir)
