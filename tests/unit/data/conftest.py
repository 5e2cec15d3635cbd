"""Tiny trees in Cityscapes' layout, and shards packed from them."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.data.dataset import ShardDataset
from pipeline.data.labels import CITYSCAPES
from pipeline.data.packing.pack import pack_cityscapes
from pipeline.data.plan import EpochPlan

HEIGHT, WIDTH = 36, 52


def scene(seed: int, height: int = HEIGHT, width: int = WIDTH):
    """An RGB picture of patches, and its label ids: random classes, some of them ignored."""
    rng = np.random.default_rng(seed)
    ids = np.array(CITYSCAPES.label_ids + CITYSCAPES.ignored_label_ids, np.uint8)
    label = cv2.resize(rng.choice(ids, (4, 6)), (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return image, label


def write_pair(root: Path, split: str, city: str, key: str, image, label, suffix: str = "png"):
    """One image (RGB, or anything OpenCV writes) with its label; None leaves a file out."""
    for part, name, pixels in (("leftImg8bit", f"{key}_leftImg8bit.{suffix}", image),
                               ("gtFine", f"{key}_gtFine_labelIds.png", label)):  # fmt: skip
        folder = root / part / split / city
        folder.mkdir(parents=True, exist_ok=True)
        if pixels is not None:
            stored = pixels[..., ::-1] if pixels.ndim == 3 and pixels.shape[2] == 3 else pixels
            assert cv2.imwrite(str(folder / name), np.ascontiguousarray(stored))


def write_tree(root: Path, train: int = 11, val: int = 5) -> Path:
    """A sound tree: cities of three pictures."""
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            city = f"city{number // 3}"
            write_pair(root, split, city, f"{city}_{number:06d}", *scene(number + 1000 * (split == "val")))
    return root


@pytest.fixture
def tree(tmp_path) -> Path:
    return write_tree(tmp_path / "tree")


@pytest.fixture(scope="session")
def packed(tmp_path_factory) -> str:
    """Shards of 11 training and 5 validation samples, at most 3 a shard. Not to be written to."""
    folder = tmp_path_factory.mktemp("packed")
    pack_cityscapes(str(write_tree(folder / "tree")), str(folder / "shards"), samples_per_shard=3)
    return str(folder / "shards")


@pytest.fixture
def own(packed, tmp_path) -> str:
    """The same shards in a folder that the test may damage."""
    return str(shutil.copytree(packed, tmp_path / "own"))


@pytest.fixture(scope="session")
def make_scene():
    return scene


@pytest.fixture(scope="session")
def add_pair():
    return write_pair


@pytest.fixture(scope="session")
def make_tree():
    return write_tree


@pytest.fixture
def hanging(own) -> str:
    """Shards of which one is a pipe that nobody writes to: whoever opens it waits for ever.

    It is the one of position 5 for seed 11, three streams and blocks of four.
    """
    dataset = ShardDataset.open(own, "train")
    shard = EpochPlan(dataset.split.counts, 11, 3, 4).at([5])[0, 1]
    path = Path(own, dataset.split.shards[shard].name)
    path.unlink()
    os.mkfifo(path)
    return own
