"""Evaluation that counts every validation image exactly once, however many ranks there are.

Each rank takes a contiguous slice of whole batches, never padded or repeated, so that a picture's
neighbours in a batch, and the last bits of its logits, are the same on any number of ranks. One reduction
of the confusion matrix and of the number of images at the end, which must equal the data set's.
Everything runs in float32, so `evaluate.py` on the written model gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pipeline.data.dataset import ShardDataset
from pipeline.data.eval_loader import EvalLoader, EvalSample, resize_input
from pipeline.data.labels import ClassTable
from pipeline.errors import PipelineError, ShardError
from pipeline.model.segmenter import Segmenter
from pipeline.train.metrics import Scores, confusion_matrix, scores
from pipeline.train.reduce import all_reduce_sum, raise_together
from pipeline.world import World

PICTURE_WIDTH_PX = 512
"""Widest panel of a recorded picture."""


class EvaluationStopped(Exception):  # noqa: N818 - a stop that was asked for, not a fault
    """A rank was asked to stop before everything was evaluated, so there is no score."""


@torch.inference_mode()
def predict_masks(model: Segmenter, images: list[NDArray[np.uint8]], sizes: list[tuple[int, int]],
                  device: torch.device) -> Iterator[NDArray[np.uint8]]:  # fmt: skip
    """Train-id masks (H, W) at the sizes asked for, of RGB images that share the network's input size.

    Logits are brought to full size one image at a time: K full-size planes are the largest tensor here,
    and no two images' are ever held together.
    """
    batch_BHW3 = torch.from_numpy(np.stack(images)).to(device)
    with _full_float32(device):
        # The forward itself: a compiled module rounds otherwise than whoever loads the weights later.
        logits_BKhw = model.forward(batch_BHW3.permute(0, 3, 1, 2)).logits_BKhw
    for logits_Khw, size in zip(logits_BKhw, sizes, strict=True):
        yield _argmax_at(logits_Khw, size)


def _full_float32(device: torch.device) -> AbstractContextManager[None]:
    """On CUDA, convolutions without TF32, which cuDNN takes by default and which keeps ten bits."""
    if device.type != "cuda":
        return nullcontext()
    cudnn = torch.backends.cudnn
    return cudnn.flags(enabled=True, benchmark=cudnn.benchmark, allow_tf32=False)


def _argmax_at(logits_Khw: Tensor, size: tuple[int, int]) -> NDArray[np.uint8]:
    # A pixel's classes side by side: enlarging and choosing read them once, four times as fast.
    low_1Khw = logits_Khw[None].contiguous(memory_format=torch.channels_last)
    full_1KHW = F.interpolate(low_1Khw, size, mode="bilinear", align_corners=False)
    mask: NDArray[np.uint8] = full_1KHW.argmax(1)[0].to(torch.uint8).cpu().numpy()
    return mask


def evaluate(
    model: Segmenter,
    dataset: ShardDataset,
    input_size: tuple[int, int],
    world: World,
    *,
    batch_size: int = 1,
    loader_workers: int = 0,
    stop_requested: Callable[[], bool] = lambda: False,
) -> tuple[NDArray[np.int64], Scores]:
    """Confusion matrix (K, K) and scores over the whole split, the same on every rank. A collective.

    Pictures are brought to `input_size` (height, width), predictions to each label's own size. Raises
    ShardError where the ranks together did not see every image once, and on all ranks what stopped one of
    them, EvaluationStopped where that was asked for. The model is left in the mode (train or eval) that it
    came in.
    """
    device = model.mean_3.device
    num_classes = dataset.classes.num_classes
    loader = EvalLoader(dataset, *input_size, world, loader_workers, group=batch_size)
    was_training = model.training
    model.eval()
    confusion_KK = np.zeros((num_classes, num_classes), np.int64)
    num_images, stopped = 0, False
    problem: PipelineError | None = None
    try:
        for samples in _chunks(loader, batch_size):
            if stopped := stop_requested():
                break
            masks = predict_masks(
                model, [s.image_HW3 for s in samples], [_size(s.label_HW) for s in samples], device
            )
            for sample, mask_HW in zip(samples, masks, strict=True):
                confusion_KK += confusion_matrix(mask_HW, sample.label_HW, num_classes)
                num_images += 1
    except PipelineError as error:
        problem = error
    model.train(was_training)
    raise_together(problem, world)
    counts = torch.from_numpy(np.append(confusion_KK.ravel(), [num_images, stopped])).to(device)
    *flat, num_images, num_stopped = all_reduce_sum(counts, world).tolist()
    if num_stopped:
        raise EvaluationStopped
    if num_images != len(dataset):
        raise ShardError(f"evaluation saw {num_images} images, the split has {len(dataset)}")
    confusion_KK = np.array(flat, np.int64).reshape(confusion_KK.shape)
    return confusion_KK, scores(confusion_KK)


def scene_pictures(
    model: Segmenter, dataset: ShardDataset, num_pictures: int, input_size: tuple[int, int],
    device: torch.device,
) -> list[NDArray[np.uint8]]:  # fmt: skip
    """Picture, label and prediction side by side for scenes spread evenly over the split."""
    was_training = model.training
    model.eval()
    num_pictures = min(num_pictures, len(dataset))
    panels = []
    for index in range(num_pictures):
        sample = dataset.sample_at(index * len(dataset) // num_pictures)
        image_HW3 = resize_input(sample.image_HW3, *input_size)
        (mask_HW,) = predict_masks(model, [image_HW3], [_size(sample.label_HW)], device)
        panels.append(_panel(sample.image_HW3, sample.label_HW, mask_HW, dataset.classes))
    model.train(was_training)
    return panels


def _panel(
    image_HW3: NDArray[np.uint8], label_HW: NDArray[np.uint8], mask_HW: NDArray[np.uint8], classes: ClassTable
) -> NDArray[np.uint8]:
    height, width = label_HW.shape
    panel_width = min(width, PICTURE_WIDTH_PX)
    size = (panel_width, max(1, round(height * panel_width / width)))
    parts = [
        cv2.resize(image_HW3, size, interpolation=cv2.INTER_AREA),
        cv2.resize(classes.colorize(label_HW), size, interpolation=cv2.INTER_NEAREST),
        cv2.resize(classes.colorize(mask_HW), size, interpolation=cv2.INTER_NEAREST),
    ]
    return np.concatenate(parts, axis=1).astype(np.uint8)


def _size(label_HW: NDArray[np.uint8]) -> tuple[int, int]:
    height, width = label_HW.shape
    return height, width


def _chunks(samples: Iterable[EvalSample], size: int) -> Iterator[list[EvalSample]]:
    iterator = iter(samples)
    while chunk := list(islice(iterator, size)):
        yield chunk
