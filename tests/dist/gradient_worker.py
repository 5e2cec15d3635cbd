"""One rank of the comparison with one rank: a fixed global batch, one step a case, and an evaluation.

argv: folder, JSON of the cases by name, shards. Rank 0 saves the results.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.config import BackboneConfig, Config, HeadConfig, ModelConfig, OptimConfig, TrainConfig
from pipeline.data.dataset import ShardDataset
from pipeline.model.segmenter import build_segmenter
from pipeline.train import fixed_order
from pipeline.train.batch_norm import synchronize_batch_norm
from pipeline.train.determinism import build_reduction
from pipeline.train.evaluate import evaluate
from pipeline.train.optim import build_optimizer
from pipeline.train.process_group import process_group
from pipeline.train.step import MicroBatch, StepRunner
from pipeline.world import World

GLOBAL_BATCH, ACCUMULATION, NUM_CLASSES = 12, 2, 7


def global_batch(case: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """The same pictures and labels on every rank; labels as hard as the case asks for."""
    generator = torch.Generator().manual_seed(7)
    image = torch.randint(0, 256, (GLOBAL_BATCH, 3, 32, 48), generator=generator, dtype=torch.uint8)
    label = torch.randint(0, NUM_CLASSES - 1, (GLOBAL_BATCH, 32, 48), generator=generator, dtype=torch.uint8)
    label = label.reshape(GLOBAL_BATCH, 4, 8, 6, 8)[:, :, :1, :, :1].expand(-1, -1, 8, -1, 8)
    label = label.reshape(GLOBAL_BATCH, 32, 48).clone()
    for index in range(GLOBAL_BATCH):
        label[index, : 2 * index] = 255  # unequal valid counts
    split = case["ignored_modulus"]
    label[split - 1 :: split] = 255  # one rank of `split` sees no label at all
    label[0, -8:, -8:] = NUM_CLASSES - 1  # a class that one rank alone has
    return image, label


def run_case(case: dict, world: World) -> dict:
    """Gradients, weights after the step and the curves' values of one case."""
    rank, size = world.rank, world.size
    head = HeadConfig(**{"dim": 8, "dropout": 0.0, "lambda_inter": 0.7, "lambda_intra": 0.9} | case["head"])
    config = Config(
        model=ModelConfig(BackboneConfig(depth=10, base_width=8), head),
        optim=OptimConfig(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0, min_lr=0.0),
        train=TrainConfig(
            batch_global=GLOBAL_BATCH,
            accumulation=ACCUMULATION,
            precision="float32",
            determinism=case.get("determinism", "off"),
        ),
    )
    torch.manual_seed(3)
    model = build_segmenter(config.model, NUM_CLASSES)
    for parameter in model.head.parameters():  # zero-initialised layers would hide mistakes
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    model = model.double()
    device = torch.device("cpu")
    if size > 1:
        synchronize_batch_norm(model, device)
    runner = StepRunner(
        model, build_optimizer(config.optim, model), build_reduction(model, config.train, world, device),
        class_names=[f"class {k}" for k in range(NUM_CLASSES)], config=config, world=world, device=device,
    )  # fmt: skip
    image, label = global_batch(case)
    per_micro = GLOBAL_BATCH // ACCUMULATION
    micro_batches = [
        MicroBatch(image[m + rank : m + per_micro : size], label[m + rank : m + per_micro : size], m)
        for m in range(0, GLOBAL_BATCH, per_micro)
    ]
    agreement = runner.agree(micro_batches, rank == size - 1, num_quarantined=rank + 1)
    runner.step(micro_batches, agreement.denominators, 0)
    return {
        "summary": runner.summary(0.25),
        "grads": {name: p.grad.clone() for name, p in model.named_parameters()},
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "late": agreement.late.read(),
    }


def main() -> None:
    rank, size, folder = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path(sys.argv[1])
    torch.set_num_threads(1)
    world = World(rank, size, rank, size)
    with process_group("gloo", world, store=folder / f"store{size}"):
        run_cases(world, folder, json.loads(sys.argv[2]), sys.argv[3])
        if size > 1:
            dist.barrier()  # gloo aborts a rank whose peers tear down while it still writes


def run_cases(world: World, folder: Path, cases: dict, shards: str) -> None:
    fixed_order.GROUP_BYTES = 2**14  # or all gradients of so small a network would travel together
    results = {name: run_case(case, world) for name, case in cases.items()}
    torch.manual_seed(11)
    untrained = build_segmenter(ModelConfig(BackboneConfig(depth=18, base_width=8), HeadConfig(dim=8)), 19)
    validation = ShardDataset.open(shards, "val")
    confusion, _ = evaluate(untrained, validation, (48, 64), world, batch_size=2)
    results["evaluation"] = {"confusion": torch.from_numpy(confusion)}
    if world.is_main:
        torch.save(results, folder / f"world{world.size}.pt")


if __name__ == "__main__":
    main()
