"""Published weights on several ranks: rank 0 reads them, all have them; what it meets is raised by all."""

from pathlib import Path

import pytest
import torch

from tests.forked_ranks import run_ranks
from tests.published_weights import published

RANK = """
import hashlib, os, sys
from pathlib import Path
import torch
import torch.distributed as dist
from pipeline.config import BackboneConfig, Config, HeadConfig, ModelConfig
from pipeline.errors import ConfigError
from pipeline.model.segmenter import build_segmenter, channels_last
from pipeline.train.pretrained import start_from_weights
from pipeline.world import World

rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
torch.manual_seed(rank)
backbone = BackboneConfig(base_width=8, weights=f"{folder}/of-rank-{rank}.pth")
config = Config(model=ModelConfig(backbone=backbone, head=HeadConfig(dim=16)))
model = build_segmenter(config.model, 5)
channels_last(model)
try:
    start_from_weights(model, config, World(rank, 2, rank, 2))
except ConfigError as error:
    print(error)
else:
    digest = hashlib.sha256()
    for tensor in model.backbone.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    print(digest.hexdigest(), model.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last))
dist.barrier()
dist.destroy_process_group()
"""


def said_by_ranks(folder: Path) -> list[str]:
    return [rank.out.strip() for rank in run_ranks(2, ["-c", RANK, folder])]


@pytest.mark.parametrize("of_rank_1", [None, 9])
def test_all_ranks_have_the_weights_that_rank_0_reads(of_rank_1: int | None, tmp_path: Path) -> None:
    torch.save(published(18, seed=3), tmp_path / "of-rank-0.pth")
    if of_rank_1 is not None:
        torch.save(published(18, seed=of_rank_1), tmp_path / "of-rank-1.pth")
    first, second = said_by_ranks(tmp_path)
    assert first == second
    assert first.endswith(" True"), "the layout of the kernels stays"


def test_what_rank_0_cannot_read_ends_all_ranks_with_its_words(tmp_path: Path) -> None:
    torch.save(published(18), tmp_path / "of-rank-1.pth")
    first, second = said_by_ranks(tmp_path)
    assert first == second
    assert "of-rank-0.pth: no such file" in first
