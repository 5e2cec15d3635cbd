import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import cv2
import numpy as np
import pytest

from pipeline.data.packing.pack import pack_cityscapes
from pipeline.launch import remote_lease, remote_run
from tests.machines import Machine
from tests.moto_server import serving_s3
from tests.rclone_server import s3_environment


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


@pytest.fixture(scope="session")
def s3_place() -> Iterator[str]:
    """host:port of a server with a bucket `runs`."""
    with serving_s3() as place, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(f"http://{place}").items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="runs")
        yield place


_NUMBERS = itertools.count()


@pytest.fixture
def objects(s3_place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where machines keep their runs: that server."""
    for name, value in s3_environment(f"http://{s3_place}").items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def machines(
    objects: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Machine]]:
    """Makes machines: `machines("here")`; of a run, one after the other takes the lease at once."""
    monkeypatch.setattr(remote_run, "lock_identity", lambda path: "one lock, whose holder is dead")
    monkeypatch.setattr(remote_lease, "RENEW_S", 3600.0)  # by itself no lease is renewed, and none found lost
    made: list[Machine] = []
    default = f"s3://runs/{next(_NUMBERS)}/run"

    def machine(name: str, address: str = default) -> Machine:
        made.append(Machine(address, tmp_path / address.split("/")[-2] / name / "run"))
        return made[-1]

    yield machine
    for each in made:
        each.run.release()
