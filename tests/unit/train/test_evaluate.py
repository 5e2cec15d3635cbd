"""What evaluation holds and trusts: one picture's full-size logits, the plain forward, nearest choices."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.config import BackboneConfig, HeadConfig, ModelConfig
from pipeline.data.dataset import ShardDataset
from pipeline.model.segmenter import Segmenter, build_segmenter
from pipeline.train.evaluate import evaluate, predict_masks
from pipeline.world import World

CPU = torch.device("cpu")
NUM_CLASSES = 19


def network(kind: str = "ccs") -> Segmenter:
    torch.manual_seed(0)
    config = ModelConfig(BackboneConfig(depth=10, base_width=8), HeadConfig(kind=kind, dim=8))
    return build_segmenter(config, NUM_CLASSES).eval()


class Alive(TorchDispatchMode):
    """Counts the pictures whose full-size logits are alive at once, by the size of each large tensor."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.now, self.most = numel, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.numel() >= self.numel:
                held = StorageWeakRef(tensor.untyped_storage())
                self.now[held.cdata] = held, tensor.numel() // self.numel
        self.now = {key: (held, n) for key, (held, n) in self.now.items() if not held.expired()}
        self.most = max(self.most, sum(pictures for _, pictures in self.now.values()))
        return result


def test_the_full_size_logits_of_one_picture_at_most_are_held(shards):
    dataset = ShardDataset.open(shards, "val")
    with Alive(NUM_CLASSES * 48 * 64) as watched:
        evaluate(network(), dataset, (48, 64), World(), batch_size=5)
    assert watched.most == 1


@pytest.mark.parametrize("kind", ["ccs", "plain", "ocr", "deeplabv3plus"])
def test_masks_are_the_largest_of_the_enlarged_logits(kind):
    model = network(kind)
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.randint(0, 256, (32, 48, 3), generator=generator, dtype=torch.uint8).numpy() for _ in "ab"
    ]
    sizes = [(65, 97), (31, 50)]
    with torch.no_grad():
        logits_BKhw = model(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)).logits_BKhw
    for mask, logits, size in zip(predict_masks(model, images, sizes, CPU), logits_BKhw, sizes, strict=True):
        assert (mask.shape, mask.dtype) == (size, np.uint8)
        full = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
        chosen = full.gather(0, torch.from_numpy(mask).long()[None])[0]
        torch.testing.assert_close(chosen, full.amax(0))  # ties within rounding may go either way


def test_evaluation_takes_the_forward_of_a_module_that_was_compiled(shards):
    """A module in place of which another is called gives the scores of the weights alone."""
    dataset = ShardDataset.open(shards, "val")
    model = network()
    expected, _ = evaluate(model, dataset, (48, 64), World())

    def compiled(*_):
        raise AssertionError("evaluation called the compiled network")

    model._compiled_call_impl = compiled
    found, _ = evaluate(model, dataset, (48, 64), World())
    assert np.array_equal(found, expected)
