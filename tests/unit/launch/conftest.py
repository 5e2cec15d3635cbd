import logging
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.data.packing.pack import pack_cityscapes


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Jobs and workers send the pipeline's log lines elsewhere; other tests shall not notice."""
    logger = logging.getLogger("pipeline")
    before = logger.level, logger.propagate, logger.handlers[:]
    yield
    for handler in logger.handlers:
        if handler not in before[2]:
            handler.close()
    logger.level, logger.propagate, logger.handlers[:] = before


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures to train on and two to validate on, packed."""
    base = tmp_path_factory.mktemp("data")
    for split, count in (("train", 4), ("val", 2)):
        for index in range(count):
            for kind, suffix, pixels in (
                ("leftImg8bit", "leftImg8bit", np.full((32, 64, 3), 40 * index, np.uint8)),
                ("gtFine", "gtFine_labelIds", np.full((32, 64), 7, np.uint8)),
            ):
                folder = base / "tree" / kind / split / split
                folder.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(folder / f"{split}_{index:06d}_000019_{suffix}.png"), pixels)
    pack_cityscapes(str(base / "tree"), str(base / "shards"))
    return base / "shards"
