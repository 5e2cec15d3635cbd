"""Ray Data: webdataset's tars read and mapped by two tasks of a Ray of its own."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, cast

import numpy as np
import ray

from loaders import crop_first, webdataset_tars
from loaders.task import WORKERS, Batch, Task

from_memory = crop_first.from_memory
write = webdataset_tars.write
_COPIES = 512
"""Times that the data set holds each tar: the border of an epoch is not what is measured."""


class _Crops:
    """An actor's state: the next random numbers."""

    def __init__(self, task: Task) -> None:
        self._work = crop_first.CropFirst(task)

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        image_hw3, label_hw = self._work.sample(sample["image"], sample["label.png"])
        return {"image": image_hw3, "label": label_hw}


def batches(task: Task) -> Generator[Batch, None, None]:
    """Batches as arrays from the object store, made contiguous where they are not."""
    ray.init(address="local", num_cpus=WORKERS + 1, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    tars = sorted(str(path) for path in task.packed.glob("*.tar"))
    dataset = ray.data.read_webdataset(tars * _COPIES, decoder=None, shuffle="files")
    dataset = dataset.map(
        cast("Any", _Crops),
        fn_constructor_args=(task,),
        compute=ray.data.ActorPoolStrategy(size=WORKERS),
        num_cpus=1,
    )
    try:
        for batch in dataset.iter_batches(batch_size=task.batch, batch_format="numpy", drop_last=True):
            yield np.ascontiguousarray(batch["image"]), np.ascontiguousarray(batch["label"])
    finally:
        ray.shutdown()
