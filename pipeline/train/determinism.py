"""`train.determinism`: what torch has to be told, and what a resumed run must share with the run before.

`off`      the fastest kernels and stock DDP; on CPUs, with one rank or two, a resume is exact all the same.
`exact`    kernels that give the same bits each time, and sums over ranks in an order of our own.
`elastic`  the same, over virtual shards instead of ranks; BatchNorm, dropout and curves follow these too.

Bits are those of one kind of device, one build of torch and one number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pipeline.config import Config, TrainConfig
from pipeline.errors import CheckpointError
from pipeline.train.fixed_order import FixedOrder
from pipeline.train.reduce import GradientReduction, SingleProcess, StockDdp
from pipeline.world import World

CUBLAS_WORKSPACE = ":4096:8"
"""Eight buffers of 4 MiB: with them, cuBLAS needs no second stream's, whose choice would vary."""


def settle_kernels(train: TrainConfig, threads: int) -> None:
    """Tell torch whether this process wants the same bits each time; before the first CUDA product.

    With determinism, operators that have no kernel for it raise RuntimeError, naming themselves.
    """
    deterministic = train.determinism != "off"
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
        torch.set_num_threads(threads)  # on CPUs the order of sums depends on them
    torch.use_deterministic_algorithms(deterministic)
    # Nothing here reads what it did not write, and filling it takes time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Crops and pictures come in few sizes, so trying kernels pays; which one wins is chance.
    torch.backends.cudnn.benchmark = not deterministic


def build_reduction(
    model: nn.Module, train: TrainConfig, world: World, device: torch.device
) -> GradientReduction:
    """How gradients are summed: as the setting asks, and by nobody where there is nothing to sum."""
    if train.determinism == "elastic":
        return FixedOrder(model, world, train.virtual_shards)
    if world.size == 1:
        return SingleProcess(model)
    return (
        FixedOrder(model, world, world.size)
        if train.determinism == "exact"
        else StockDdp(model, world, device)
    )


def surroundings(config: Config, world: World, device: torch.device) -> dict[str, Any]:
    """What a promise of the same bits depends on beside config and data, as JSON values; none without one."""
    found: dict[str, Any] = {}
    if config.train.determinism == "off":
        return found
    if config.train.determinism == "exact":
        found["workers"] = world.size
    if device.type == "cpu":
        found["--launch.threads_per_worker"] = config.launch.threads_per_worker
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability()
    )
    return found | {"device": f"{device.type} {name}", "torch": torch.__version__}


def refuse_other_surroundings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises CheckpointError where going on would not give the bits that were promised."""
    for name, value in current.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"the checkpoint was made with {name} {saved.get(name)}, now {value}, which "
                "train.determinism does not allow: it would end with other bits; go on with the former, or "
                "begin another --name"
            )
