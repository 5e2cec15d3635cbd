"""A data set on a real S3 server, as tests of remote shards share it, and what of it is on this node."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.config import StoreConfig
from pipeline.data.packing.pack import pack_cityscapes
from tests.faulty_proxy import FaultyProxy
from tests.rclone_server import s3_environment

TRAIN, VAL, A_SHARD = 312, 4, 2
S3 = "s3://bucket/city"


def draw(root: Path, split: str, number: int) -> None:
    random = np.random.default_rng([number, len(split)])
    for kind, suffix, picture in (
        ("leftImg8bit", "leftImg8bit", random.integers(0, 256, (48, 64, 3), np.uint8)),
        ("gtFine", "gtFine_labelIds", np.kron(random.choice([7, 11, 23, 26], (3, 4)), np.ones((16, 16)))),
    ):
        path = root / kind / split / "tiny" / f"tiny_{number:06d}_000019_{suffix}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), picture.astype(np.uint8))


def pack_served(folder: Path) -> None:
    """Fill the bucket `bucket` of a folder with 156 training shards of two samples."""
    for split, count in (("train", TRAIN), ("val", VAL)):
        for number in range(count):
            draw(folder / "tree", split, number)
    pack_cityscapes(str(folder / "tree"), str(folder / "bucket" / "city"), samples_per_shard=A_SHARD)


def use(monkeypatch: pytest.MonkeyPatch, proxy: FaultyProxy, **changes: str) -> None:
    """Let the server be reached through the proxy."""
    for name, value in s3_environment(proxy.url, **changes).items():
        monkeypatch.setenv(name, value)


def files_here(store: StoreConfig) -> list[Path]:
    """Shards and their indexes."""
    return [
        path for path in Path(store.cache_dir).glob("ccs-shards-*/shards/*/*/*") if path.suffix != ".part"
    ]


def shards_here(store: StoreConfig) -> list[Path]:
    return [path for path in files_here(store) if path.read_bytes()[:1] != b"{"]


def all_sound(shards: list[Path]) -> bool:
    """Whether what is in use is what its name says. What is on its way when a process ends is not in use."""
    return all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in shards)


def partials(store: StoreConfig) -> list[Path]:
    return list(Path(store.cache_dir).glob("ccs-shards-*/shards/*/*/*.part"))
