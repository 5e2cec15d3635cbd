"""Small real data that tests share: a tree in Cityscapes' layout, and its shards."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.data.labels import CITYSCAPES
from pipeline.data.pack import pack_cityscapes

TRAIN_IMAGES, VAL_IMAGES = 13, 5
IMAGE_HEIGHT, IMAGE_WIDTH = 48, 64


def write_scene(root: Path, split: str, index: int) -> None:
    """Blocks of five classes, each in its own colour with noise: learnable in a few steps."""
    rng = np.random.default_rng([index, len(split)])
    train_ids = rng.choice([0, 2, 8, 10, 13], size=(3, 4))
    label = np.kron(train_ids, np.ones((IMAGE_HEIGHT // 3, IMAGE_WIDTH // 4), np.int64)).astype(np.uint8)
    image = CITYSCAPES.colorize(label).astype(np.int64) + rng.integers(-20, 21, (*label.shape, 3))
    stem = f"tiny_{index:06d}_000019"
    for folder, name, picture in (
        ("leftImg8bit", "leftImg8bit", np.clip(image, 0, 255).astype(np.uint8)[..., ::-1]),
        ("gtFine", "gtFine_labelIds", CITYSCAPES.to_label_ids(label)),
    ):
        path = root / folder / split / "tiny" / f"{stem}_{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), picture)


@pytest.fixture(scope="session")
def cityscapes_tree(tmp_path_factory) -> Path:
    """A tree of 13 training and 5 validation scenes."""
    root = tmp_path_factory.mktemp("tree")
    for index in range(TRAIN_IMAGES):
        write_scene(root, "train", index)
    for index in range(VAL_IMAGES):
        write_scene(root, "val", index)
    return root


@pytest.fixture(scope="session")
def shards(cityscapes_tree, tmp_path_factory) -> str:
    """The tree's shards, four samples each."""
    out = tmp_path_factory.mktemp("shards") / "tiny"
    pack_cityscapes(str(cityscapes_tree), str(out), ("train", "val"), samples_per_shard=4)
    return str(out)
