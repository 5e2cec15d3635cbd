"""The pictures that are read: photographs of a tree in Cityscapes' layout, or the drawn mini city.

Brought to the wanted size where they have another: cut to its shape, enlarged, and given a sensor's
noise, without which an enlarged photograph would compress far better than one taken at that size.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.labels import CITYSCAPES
from pipeline.data.mini_city.plan import TRAIN
from pipeline.data.mini_city.tree import render_scene

_NOISE = 0.4
"""Standard deviation, of 255: CamVid at 2048x1024 then takes 2.2 MB as PNG, what Cityscapes' own take."""
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 6]  # libpng's own default; OpenCV's writes larger files
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 90]
_CITY = "bench"

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def make_pictures(root: str, out: Path, height: int, width: int, count: int) -> None:
    """Writes `out`/tree (Cityscapes' layout) and `out`/plain (images as PNG and JPEG, train ids as PNG)."""
    images = out / "tree" / "leftImg8bit" / "train" / _CITY
    labels = out / "tree" / "gtFine" / "train" / _CITY
    for folder in (images, labels, out / "plain"):
        folder.mkdir(parents=True)

    def write(numbered: tuple[int, Pair]) -> None:
        number, (image, label) = numbered
        stem = f"{_CITY}_{number:06d}_000019"
        image, label = enlarge(image, label, height, width, number)
        _write(images / f"{stem}_leftImg8bit.png", image, _PNG)
        _write(labels / f"{stem}_gtFine_labelIds.png", label, _PNG)
        shutil.copyfile(images / f"{stem}_leftImg8bit.png", out / "plain" / f"{stem}.png")
        _write(out / "plain" / f"{stem}.jpg", image, _JPEG)
        _write(out / "plain" / f"{stem}.label.png", CITYSCAPES.to_train_ids(label), _PNG)

    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(write, enumerate(_photographs(root, count) if root else _drawings(count))):
            pass


def enlarge(image: NDArray[np.uint8], label: NDArray[np.uint8], height: int, width: int, seed: int) -> Pair:
    """The middle of a picture in the shape of height and width, at that size."""
    if image.shape[:2] == (height, width):
        return image, label
    rows = min(image.shape[0], round(image.shape[1] * height / width))
    columns = min(image.shape[1], round(image.shape[0] * width / height))
    top, left = (image.shape[0] - rows) // 2, (image.shape[1] - columns) // 2
    middle = (slice(top, top + rows), slice(left, left + columns))
    large = cv2.resize(image[middle], (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    noise = np.random.default_rng(seed).standard_normal(large.shape, dtype=np.float32)
    noisy = np.clip(np.rint(large + _NOISE * noise), 0, 255).astype(np.uint8)
    ids = cv2.resize(label[middle], (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return noisy, np.asarray(ids, np.uint8)


def mean_bytes(plain: Path, pattern: str) -> float:
    """Bytes a file, on average."""
    sizes = [path.stat().st_size for path in plain.glob(pattern)]
    return sum(sizes) / len(sizes)


def _photographs(root: str, count: int) -> Iterator[Pair]:
    """Images (BGR) and label ids, evenly out of a tree's training split."""
    paths = sorted(Path(root).glob("leftImg8bit/train/*/*_leftImg8bit.png"))
    for index in np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int).tolist():
        image = paths[index]
        name = image.name.replace("_leftImg8bit.png", "_gtFine_labelIds.png")
        label = Path(root, "gtFine", "train", image.parent.name, name)
        yield _read(image, cv2.IMREAD_COLOR), _read(label, cv2.IMREAD_UNCHANGED)


def _drawings(count: int) -> Iterator[Pair]:
    for index in range(count):
        image, label = render_scene(TRAIN[index % len(TRAIN)], np.random.default_rng([0, index, 0]))
        yield np.ascontiguousarray(image[..., ::-1]), label


def _read(path: Path, flags: int) -> NDArray[np.uint8]:
    picture = cv2.imread(str(path), flags)
    if picture is None:
        raise FileNotFoundError(f"{path} is absent or no picture; give --root a tree in Cityscapes' layout")
    return np.asarray(picture, np.uint8)


def _write(path: Path, picture: NDArray[np.uint8], options: list[int]) -> None:
    if not cv2.imwrite(str(path), picture, options):
        raise OSError(f"cannot write {path}; is there space?")
