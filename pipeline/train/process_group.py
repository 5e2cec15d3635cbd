"""The process group of all ranks: joined, and left with nothing that holds on to it."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from pipeline.world import World


@contextmanager
def process_group(
    backend: str, world: World, timeout: timedelta | None = None, store: Path | None = None
) -> Iterator[None]:
    """The default process group, for as long as the context is open; none for a rank alone.

    Ranks meet by the file `store`, or where torchrun's environment says. Networks of the group must be
    locals of functions that have returned, or raised, when the context closes: DDP keeps the group alive,
    and threads of gloo that are still there when the interpreter ends abort it, with exit code -6.
    """
    if world.size == 1:
        yield
        return
    dist.init_process_group(
        backend, timeout=timeout, rank=world.rank, world_size=world.size,
        init_method=f"file://{store}" if store else "env://",
    )  # fmt: skip
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they have the networks
        raise
    finally:
        gc.collect()
        dist.destroy_process_group()
