"""webdataset: tars read by its own pipeline in a torch DataLoader's workers."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import webdataset

from loaders import crop_first
from loaders.task import WORKERS, Batch, Task, encoded

from_memory = crop_first.from_memory
_SHARDS = 4


def write(task: Task) -> None:
    """Four tars, as each worker needs one."""
    task.packed.mkdir()
    samples = encoded(task.pictures, task.format)
    with webdataset.ShardWriter(
        str(task.packed / "part-%04d.tar"), maxcount=-(-len(samples) // _SHARDS), verbose=0
    ) as sink:
        for key, image, label in samples:
            sink.write({"__key__": key, "image": image, "label.png": label})


def batches(task: Task) -> Generator[Batch, None, None]:
    """Decoded, cropped and batched in the workers."""
    work = crop_first.CropFirst(task)

    def crop(sample: dict[str, Any]) -> Batch:
        return work.sample(sample["image"], sample["label.png"])

    tars = sorted(str(path) for path in task.packed.glob("*.tar"))
    # Resampled: the border of an epoch is not what is measured.
    dataset = webdataset.WebDataset(tars, resampled=True).shuffle(64)
    dataset = dataset.map(crop).batched(task.batch)
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=WORKERS)
    for images, labels in loader:
        yield images.numpy(), labels.numpy()
