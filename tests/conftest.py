"""Small real data that tests share: a tree in Cityscapes' layout, and its shards."""

import logging
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from pipeline.data.labels import CITYSCAPES
from pipeline.data.packing.pack import pack_cityscapes
from pipeline.world import World

# A busy machine is slow, not wrong.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

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


@pytest.fixture(autouse=True)
def pipeline_logger():
    """A job that runs inside a test sends the log to that test's standard output, which then closes."""
    logger = logging.getLogger("pipeline")
    handlers, level, logger_propagates = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate = logger_propagates


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


class Surroundings:
    """A RunContext in memory; asks to stop at the given step."""

    world, tracking = World(), ""

    def __init__(self, attempt="a", stop_step=None):
        self.attempt, self.stop_step = attempt, stop_step
        self.points, self.events, self.pictures, self.steps_begun = {}, [], {}, 0

    def phase(self, name):
        self.steps_begun += name == "step"
        return nullcontext()

    def mark(self, point, step):
        pass

    def stop_requested(self):
        return self.stop_step is not None and self.steps_begun >= self.stop_step

    def metrics(self, step, values):
        for key, value in values.items():
            assert (key, step) not in self.points, "each point of a curve is recorded once"
            self.points[key, step] = value

    def event(self, name, step, **fields):
        self.events.append((name, step))

    def picture(self, key, step, image_HW3):
        self.pictures[key, step] = image_HW3

    def table(self, key, step, columns, rows):
        assert all(len(row) == len(columns) for row in rows)


@pytest.fixture
def surroundings() -> type[Surroundings]:
    """Makes RunContexts in memory: `surroundings(attempt, stop_step)`."""
    return Surroundings
