"""What lies in a tree in Cityscapes' layout.

ROOT/leftImg8bit/<split>/<city>/<key>_leftImg8bit.png      (or .jpg, .jpeg)
ROOT/gtFine/<split>/<city>/<key>_gtFine_labelIds.png
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.data.packing.pictures import Picture, TreeError, by_key, files_of, refuse_split_name
from pipeline.errors import DatasetError, nearest

IMAGES, LABELS = "leftImg8bit", "gtFine"
_IMAGE_NAME = re.compile(r"(?P<key>.+)_leftImg8bit\.(png|jpg|jpeg)", re.IGNORECASE)
_LABEL_NAME = re.compile(r"(?P<key>.+)_gtFine_labelIds\.png", re.IGNORECASE)
_ROOT_HINT = f"--root takes the folder with {IMAGES}/ and {LABELS}/"


def find_pictures(root: Path, splits: Sequence[str]) -> tuple[Picture, ...]:
    """All pairs of the splits, by split and key; raises TreeError for whatever has no counterpart."""
    _refuse_no_tree(root, splits)
    problems: list[str] = []
    pictures: list[Picture] = []
    for split in splits:
        bad: dict[str, str] = {}
        images = by_key(_keyed(root / IMAGES / split, _IMAGE_NAME, bad), bad)
        labels = by_key(_keyed(root / LABELS / split, _LABEL_NAME, bad), bad)
        for key in sorted(images.keys() | labels.keys()):
            if key not in labels:
                label = f"{LABELS}/{split}/…/{key}_gtFine_labelIds.png"
                bad.setdefault(
                    key, f"image without label: {images[key]} lacks {label}; add it or remove the image"
                )
            elif key not in images:
                image = f"{IMAGES}/{split}/…/{key}_leftImg8bit.png"
                bad.setdefault(
                    key, f"label without image: {labels[key]} lacks {image}; add it or remove the label"
                )
            else:
                pictures.append(Picture(split, key, images[key], labels[key]))
        problems += bad.values()
    if problems:
        raise TreeError(problems)
    return tuple(pictures)


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
        refuse_split_name(split)
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
    """Pictures in a split's folder and in the folders in it."""
    if folder.is_dir():
        for entry in sorted(folder.iterdir()):
            if entry.is_dir():
                yield from files_of(entry)
        yield from files_of(folder)


def _keyed(folder: Path, pattern: re.Pattern[str], problems: dict[str, str]) -> Iterator[tuple[str, Path]]:
    """(key, file) for the files that the pattern names; adds to `problems`."""
    for path in _files(folder):
        match = pattern.fullmatch(path.name)
        if match is not None:
            yield match["key"], path
        elif pattern is _IMAGE_NAME:  # gtFine has colour and instance pictures beside the labels
            said = f"{path} does not end in _leftImg8bit.png (or .jpg); rename or remove it"
            problems.setdefault(path.stem, said)
