"""What the confusion matrix costs of an evaluation, and how many full-size logits are held at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipeline.data.dataset import ShardDataset
from pipeline.data.eval_loader import EvalSample
from pipeline.data.labels import CITYSCAPES
from pipeline.model.segmenter import Segmenter
from pipeline.train import evaluate as evaluation
from pipeline.train import metrics
from pipeline.world import World
from steps.batches import draw_label
from steps.clock import PeakMemory
from steps.runners import build_learner
from steps.task import NUM_CLASSES, Task, identity

_TOGETHER = 2
"""Pictures that go through the network at once while logits are counted: more than may be held."""


class PicturesInMemory:
    """Stands for a data set of whole pictures, so that reading costs nothing and shares are the largest."""

    classes = CITYSCAPES

    def __init__(self, count: int, height: int, width: int) -> None:
        generator = np.random.default_rng(0)
        self._samples = [
            EvalSample(
                generator.integers(0, 256, (height, width, 3), np.uint8),
                draw_label(generator, height, width, NUM_CLASSES), str(index), index,
            )
            for index in range(count)
        ]  # fmt: skip

    def __len__(self) -> int:
        return len(self._samples)

    def sample_at(self, index: int) -> EvalSample:
        """As a data set's."""
        return self._samples[index]


class FullSizeLogits(TorchDispatchMode):
    """Watches how many pictures' logits of that size are held at once; views of one tensor count once."""

    def __init__(self, num_classes: int, height: int, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._shape, self._numbers = (num_classes, height, width), num_classes * height * width
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0
        """Pictures."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,  # noqa: ANN401 - all four as torch has them
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """The operator's result, looked at."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.shape[-3:] == self._shape:
                storage = tensor.untyped_storage()
                pictures = storage.nbytes() // tensor.element_size() // self._numbers
                reference = StorageWeakRef(storage)
                self._held[reference.cdata] = (reference, pictures)
        self._held = {at: held for at, held in self._held.items() if not held[0].expired()}
        self.most = max(self.most, sum(pictures for _, pictures in self._held.values()))
        return result


def measure_evaluation(task: Task) -> dict[str, Any]:
    """Of `task.count` pictures of the crop's size, in the pipeline's own evaluation, one at a time."""
    config, device = task.config(), torch.device(task.device)
    memory = PeakMemory(device)
    model, _ = build_learner(config, device)
    size = task.crop()
    run_evaluation(model, 1, size, device, batch_size=1)  # cuDNN chooses, caches fill
    begin_s = time.perf_counter()
    matrix_s = run_evaluation(model, task.count, size, device, batch_size=1)
    whole_s = time.perf_counter() - begin_s
    peak_mb = memory.mb()
    with FullSizeLogits(NUM_CLASSES, *size) as watched:
        run_evaluation(model, _TOGETHER, size, device, batch_size=_TOGETHER)
    assert watched.most >= 1, "no full-size logits were seen, so none were counted"
    return identity(task) | {
        "batch": 1,
        "dtype": "float32",
        "picture_ms": 1e3 * whole_s / task.count,
        "matrix_ms": 1e3 * matrix_s / task.count,
        "matrix_share": matrix_s / whole_s,
        "logits_held": watched.most,
        "pictures_at_once": _TOGETHER,
        "peak_mb": peak_mb,
    }


def run_evaluation(
    model: Segmenter, count: int, size: tuple[int, int], device: torch.device, batch_size: int
) -> float:
    """Seconds that an evaluation of so many pictures spent on the confusion matrix."""
    pictures = cast("ShardDataset", PicturesInMemory(count, *size))
    spent_s = 0.0
    original = metrics.confusion_matrix

    def timed(*arguments: Any) -> Any:  # noqa: ANN401 - as the original's
        nonlocal spent_s
        begin_s = time.perf_counter()
        found = original(*arguments)
        spent_s += time.perf_counter() - begin_s
        return found

    with mock.patch.object(evaluation, "confusion_matrix", timed):
        evaluation.evaluate(model, pictures, size, World(), batch_size=batch_size)
    assert spent_s > 0
    return spent_s
