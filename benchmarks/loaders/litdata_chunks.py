"""litdata: its chunks and its own DataLoader."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import litdata
import torch

from loaders import crop_first
from loaders.task import SEED, WORKERS, Batch, Task, picture_files

from_memory = crop_first.from_memory


def write(task: Task) -> None:
    """Chunks of encoded bytes; each picture so often that no border of an epoch is measured."""
    files = picture_files(task.pictures, task.format)
    copies = -(-2 * (task.warm_up + task.samples) // len(files))
    litdata.optimize(
        fn=_as_they_are,
        inputs=files * copies,
        output_dir=str(task.packed),
        chunk_bytes="64MB",
        num_workers=1,
        verbose=False,
    )


def batches(task: Task) -> Generator[Batch, None, None]:
    """Decoded, cropped and collated in the workers."""
    work = crop_first.CropFirst(task)

    def collate(samples: list[dict[str, bytes]]) -> tuple[torch.Tensor, torch.Tensor]:
        return work.collate([(sample["image"], sample["label"]) for sample in samples])

    dataset = litdata.StreamingDataset(str(task.packed), shuffle=True, seed=SEED, drop_last=True)
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=task.batch, num_workers=WORKERS, collate_fn=collate
    )
    while True:
        for images, labels in loader:
            yield images.numpy(), labels.numpy()


def _as_they_are(files: tuple[Path, Path]) -> dict[str, bytes]:
    image, label = files
    return {"image": image.read_bytes(), "label": label.read_bytes()}
