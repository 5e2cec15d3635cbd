from pathlib import Path

import torch

from pipeline.config import BackboneConfig, Config, ModelConfig, OptimConfig, TrainConfig
from pipeline.launch.preflight import bytes_needed, check_run, count_parameters
from pipeline.model.segmenter import build_segmenter

TINY = ModelConfig(backbone=BackboneConfig(base_width=8))


def test_parameters_are_those_of_the_real_model() -> None:
    real = sum(tensor.numel() for tensor in build_segmenter(TINY, 5).state_dict().values())
    assert count_parameters(Config(model=TINY), 5) == real


def test_meta_device_does_not_leak() -> None:
    count_parameters(Config(model=TINY), 5)
    assert torch.empty(1).device.type == "cpu"


def test_bytes_cover_every_kept_checkpoint_with_its_moments() -> None:
    for name, moments in (("sgd", 1), ("adamw", 2)):
        for averaged in (0.0, 0.99):
            train = TrainConfig(keep_last=3, ema_decay=averaged)
            config = Config(optim=OptimConfig(name=name), train=train)  # type: ignore[arg-type]  # both names are
            one_checkpoint = 4 * 10**8 * (1 + moments + bool(averaged))
            assert bytes_needed(config, 10**8) > 4 * one_checkpoint, "three last ones and the best"


def test_facts_of_a_run_that_can_start(shards: Path, tmp_path: Path) -> None:
    checked = check_run(Config(model=TINY), str(shards), tmp_path / "runs" / "x")
    assert checked.num_samples == 4
    assert not (tmp_path / "runs").exists()
