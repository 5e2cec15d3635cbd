"""What lies in a tree in Cityscapes' layout, and everything that is wrong with it.

    ROOT/leftImg8bit/<split>/<city>/<key>_leftImg8bit.png      (or .jpg, .jpeg)
    ROOT/gtFine/<split>/<city>/<key>_gtFine_labelIds.png

All problems of a tree are collected before one is reported, so that a person learns at once whether
one file is bad or all of them are.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipeline.data.decode import decode_gray, decode_rgb, refuse_broken_png
from pipeline.data.labels import ClassTable
from pipeline.errors import DatasetError, nearest

IMAGES, LABELS = "leftImg8bit", "gtFine"
_IMAGE_NAME = re.compile(r"(?P<key>.+)_leftImg8bit\.(png|jpg|jpeg)", re.IGNORECASE)
_LABEL_NAME = re.compile(r"(?P<key>.+)_gtFine_labelIds\.png", re.IGNORECASE)
_ROOT_HINT = f"--root takes the folder with {IMAGES}/ and {LABELS}/"
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
# WebDataset ends a key at its first dot; a slash would make a folder of it.
_KEY = re.compile(r"[^\s./\\\x00-\x1f]{1,80}")


class TreeError(DatasetError):
    """A tree that is refused; the message has the first of its `problems`."""

    def __init__(self, problems: Sequence[str]) -> None:
        more = len(problems) - 1
        others = f" (and {more} more such problem{'s' if more > 1 else ''})" if more else ""
        super().__init__(f"{problems[0]}{others}; nothing was packed")
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Picture:
    """An image and its label in the tree."""

    split: str
    key: str
    image: Path
    label: Path


def find_pictures(root: Path, splits: Sequence[str]) -> tuple[Picture, ...]:
    """All pairs of the splits, by split and key; raises TreeError for whatever has no counterpart."""
    _refuse_no_tree(root, splits)
    problems: list[str] = []
    pictures: list[Picture] = []
    for split in splits:
        images = _by_key(root / IMAGES / split, _IMAGE_NAME, problems)
        labels = _by_key(root / LABELS / split, _LABEL_NAME, problems)
        for key in sorted(images.keys() | labels.keys()):
            if key not in labels:
                label = f"{LABELS}/{split}/…/{key}_gtFine_labelIds.png"
                problems.append(
                    f"image without label: {images[key]} lacks {label}; add it or remove the image"
                )
            elif key not in images:
                image = f"{IMAGES}/{split}/…/{key}_leftImg8bit.png"
                problems.append(
                    f"label without image: {labels[key]} lacks {image}; add it or remove the label"
                )
            else:
                pictures.append(Picture(split, key, images[key], labels[key]))
    if problems:
        raise TreeError(problems)
    return tuple(pictures)


def scan_pictures(pictures: Sequence[Picture], classes: ClassTable) -> tuple[str, ...]:
    """The sha256 of each pair's bytes, after every pixel was decoded; raises TreeError.

    Refuses broken files, labels that are not 8-bit single-channel, sizes that differ and ids outside
    the class table.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = list(pool.map(lambda picture: _scan(picture, classes), pictures))
    problems = [result.problem for result in found if result.problem]
    if problems:
        raise TreeError(problems)
    return tuple(result.digest for result in found)


def hash_pictures(pictures: Sequence[Picture]) -> tuple[str, ...]:
    """The sha256 of each pair's bytes, as `scan_pictures` gives it, without decoding."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return tuple(pool.map(lambda p: _digest(read_file(p.image), read_file(p.label)), pictures))


def read_file(path: Path) -> bytes:
    """The file's bytes; raises DatasetError naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}; replace or remove it") from error


@dataclass(frozen=True)
class _Scanned:
    digest: str = ""
    problem: str = ""


def _scan(picture: Picture, classes: ClassTable) -> _Scanned:
    try:
        image, label = read_file(picture.image), read_file(picture.label)
        for data, path in ((image, picture.image), (label, picture.label)):
            refuse_broken_png(data, str(path))
        image_HW3 = decode_rgb(image, str(picture.image))
        label_HW = decode_gray(label, str(picture.label))
        if image_HW3.shape[:2] != label_HW.shape:
            (height, width), (label_height, label_width) = image_HW3.shape[:2], label_HW.shape
            return _Scanned(
                problem=f"size mismatch: {picture.image} is {width}x{height} pixels, "
                f"{picture.label} is {label_width}x{label_height}; make them one size"
            )
    except DatasetError as error:
        return _Scanned(problem=str(error))
    try:
        classes.to_train_ids(label_HW)
    except DatasetError as error:
        return _Scanned(problem=f"{picture.label}: {error}")
    return _Scanned(digest=_digest(image, label))


def _digest(image: bytes, label: bytes) -> str:
    return hashlib.sha256(hashlib.sha256(image).digest() + hashlib.sha256(label).digest()).hexdigest()


def _refuse_no_tree(root: Path, splits: Sequence[str]) -> None:
    if not splits:
        raise DatasetError("no splits are named; type --splits train val")
    if not root.is_dir():
        raise DatasetError(f"no such folder: {root}; {_ROOT_HINT}")
    for part in (IMAGES, LABELS):
        if not (root / part).is_dir():
            inside = sorted(entry.name for entry in root.iterdir())
            deeper = [name for name in inside if (root / name / part).is_dir()]
            raise DatasetError(
                f"{root} has no folder {part}/ (it has {', '.join(inside[:6]) or 'nothing'}); "
                + (f"type --root {root / deeper[0]}" if deeper else _ROOT_HINT)
            )
    for split in splits:
        folder = root / IMAGES / split
        if not folder.is_dir():
            there = sorted(entry.name for entry in (root / IMAGES).iterdir() if entry.is_dir())
            raise DatasetError(
                f"no such folder: {folder}{nearest(split, there)}; type --splits with some of: "
                f"{' '.join(there) or '(there are none)'}"
            )
        if not any(_files(folder)):
            raise DatasetError(
                f"no images in {folder}; they are expected as <city>/<key>_leftImg8bit.png (or .jpg)"
            )


def _files(folder: Path) -> Iterator[Path]:
    """Pictures in a split's folder and in the folders in it, links followed, hidden files left out."""
    if not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):
        files = sorted(entry.iterdir()) if entry.is_dir() else [entry]
        for path in files:
            if path.suffix.lower() in _PICTURE_SUFFIXES and not path.name.startswith("."):
                yield path


def _by_key(folder: Path, pattern: re.Pattern[str], problems: list[str]) -> dict[str, Path]:
    """Key → file, for the files that the pattern names; adds to `problems`."""
    found: dict[str, Path] = {}
    for path in _files(folder):
        match = pattern.fullmatch(path.name)
        if match is None:
            # gtFine has colour and instance pictures beside the labels; leftImg8bit has images alone.
            if pattern is _IMAGE_NAME:
                problems.append(f"{path} does not end in _leftImg8bit.png (or .jpg); rename or remove it")
            continue
        key = match["key"]
        if not path.is_file():
            problems.append(f"{path} is no file, or a link to nothing; replace or remove it")
        if _KEY.fullmatch(key) is None:
            problems.append(
                f"{path}: the key {key!r} may have no dot or blank and 80 letters at most; rename it"
            )
        elif key in found:
            problems.append(f"duplicate key {key!r}: {found[key]} and {path}; rename or remove one")
        found.setdefault(key, path)
    return found
