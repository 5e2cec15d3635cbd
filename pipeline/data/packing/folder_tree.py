"""What lies in a folder of images and a folder of labels, of any data set.

    IMAGES/[<split>/]…/<key>.png      (or .jpg, .jpeg)
    LABELS/[<split>/]…/<key>.png

An image and a label belong together by their names without the ending; the folders between are free.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.data.packing.pictures import Picture, TreeError, by_key, files_of, refuse_split_name
from pipeline.errors import DatasetError


def find_pairs(images: Path, labels: Path, split: str = "") -> tuple[Picture, ...]:
    """All pairs, by split and key; raises TreeError for whatever has no counterpart.

    With `split` everything belongs to it; without, each folder in `images` is a split of its own.
    """
    for flag, folder in (("--images", images), ("--labels", labels)):
        if not folder.is_dir():
            raise DatasetError(f"no such folder: {folder}; {flag} takes a folder of pictures")
    if split:
        refuse_split_name(split)
    folders = [(split, images, labels)] if split else _folders(images, labels)
    problems: list[str] = []
    pictures: list[Picture] = []
    for name, image_folder, label_folder in folders:
        bad: dict[str, str] = {}
        found = by_key(((path.stem, path) for path in _below(image_folder)), bad)
        if not found:
            raise DatasetError(f"no images in {image_folder}; they are expected as <key>.png (or .jpg)")
        pngs = (path for path in _below(label_folder) if path.suffix.lower() == ".png")
        pictures += _pairs(name, found, by_key(((path.stem, path) for path in pngs), bad), bad)
        problems += bad.values()
    if problems:
        raise TreeError(problems)
    return tuple(pictures)


def _pairs(
    split: str, images: dict[str, Path], labels: dict[str, Path], problems: dict[str, str]
) -> Iterator[Picture]:
    for key in sorted(images.keys() | labels.keys()):
        if key not in labels:
            said = f"image without label: {images[key]} lacks a {key}.png; add it or remove the image"
            problems.setdefault(key, said)
        elif key not in images:
            said = (
                f"label without image: {labels[key]} lacks a {key}.png (or .jpg); add it or remove the label"
            )
            problems.setdefault(key, said)
        else:
            yield Picture(split, key, images[key], labels[key])


def _folders(images: Path, labels: Path) -> list[tuple[str, Path, Path]]:
    """(split, images, labels) of the folders in `images`; refuses what belongs to no split."""
    names = sorted(e.name for e in images.iterdir() if e.is_dir() and not e.name.startswith("."))
    if any(files_of(images)) or not names:
        raise DatasetError(
            f"{images} has {'pictures' if any(files_of(images)) else 'no folders'} where each folder in it "
            "is to be a split (train/, val/); make such folders, or type --split NAME for all of them"
        )
    for name in names:
        refuse_split_name(name)
        if not (labels / name).is_dir():
            raise DatasetError(
                f"no such folder: {labels / name}; each split of {images} needs one, or type --split NAME"
            )
    return [(name, images / name, labels / name) for name in names]


def _below(folder: Path) -> Iterator[Path]:
    """The pictures in a folder and in all folders below it, in order; hidden folders left out."""
    yield from files_of(folder)
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _below(entry)
