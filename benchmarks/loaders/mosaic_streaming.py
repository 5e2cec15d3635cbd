"""mosaicml-streaming: its MDS shards and its own DataLoader."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Generator
from types import ModuleType

import torch

from loaders import crop_first
from loaders.task import SEED, WORKERS, Batch, Task, encoded

# Its package imports torchvision for data sets that are not used here; torchvision is one more library
# that must fit torch's build. So the package is entered by its `base` part.
if "streaming" not in sys.modules:
    _found = importlib.util.find_spec("streaming")
    if _found is None:
        raise ModuleNotFoundError("mosaicml-streaming is not installed", name="streaming")
    _package = ModuleType("streaming")
    _package.__path__ = list(_found.submodule_search_locations or [])
    sys.modules["streaming"] = _package

from streaming.base import MDSWriter, Stream, StreamingDataLoader, StreamingDataset

from_memory = crop_first.from_memory
_REPEAT = 64
"""Times that an epoch holds each picture: the border of an epoch is not what is measured."""


def write(task: Task) -> None:
    """MDS shards of encoded bytes."""
    with MDSWriter(out=str(task.packed), columns={"image": "bytes", "label": "bytes"}) as sink:
        for _, image, label in encoded(task.pictures, task.format):
            sink.write({"image": image, "label": label})


def batches(task: Task) -> Generator[Batch, None, None]:
    """Decoded, cropped and collated in the workers."""
    work = crop_first.CropFirst(task)

    def collate(samples: list[dict[str, bytes]]) -> tuple[torch.Tensor, torch.Tensor]:
        return work.collate([(sample["image"], sample["label"]) for sample in samples])

    stream = Stream(local=str(task.packed), repeat=_REPEAT)
    dataset = StreamingDataset(
        streams=[stream], shuffle=True, shuffle_seed=SEED, batch_size=task.batch, num_canonical_nodes=1
    )
    loader = StreamingDataLoader(
        dataset, batch_size=task.batch, num_workers=WORKERS, collate_fn=collate, drop_last=True
    )
    while True:
        for images, labels in loader:
            yield images.numpy(), labels.numpy()
