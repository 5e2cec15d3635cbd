"""Pairs of an image and a label, and everything that can be wrong with them.

All problems are collected before one is reported, so that a person learns at once whether one file is
bad or all of them are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.data.decode import decode_rgb, refuse_broken_png
from pipeline.data.labels import ClassTable
from pipeline.data.packing.label_file import decode_label_ids
from pipeline.data.packing.parallel import MapTasks
from pipeline.data.packing.progress import Progress
from pipeline.errors import ConfigError, DatasetError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
# WebDataset ends a key at its first dot; a slash would make a folder of it.
_KEY = re.compile(r"[^\s./\\\x00-\x1f]{1,80}")
_SPLIT = re.compile(r"[A-Za-z0-9_-]{1,40}")
_PAIRS_A_TASK = 8


class TreeError(DatasetError):
    """A tree that is refused; the message has the first of its `problems`, of which a picture has one."""

    def __init__(self, problems: Sequence[str]) -> None:
        more = len(problems) - 1
        others = f" (and {more} more such problem{'s' if more > 1 else ''})" if more else ""
        super().__init__(f"{problems[0]}{others}; nothing was packed")
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class Picture:
    """An image and its label in the tree."""

    split: str
    key: str
    image: Path
    label: Path

    @property
    def num_bytes(self) -> int:
        """Bytes of both files."""
        return self.image.stat().st_size + self.label.stat().st_size


def files_of(folder: Path) -> Iterator[Path]:
    """The pictures of a folder, in order, links followed and hidden files left out; not those below it."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("."):
            yield path


def by_key(keyed: Iterable[tuple[str, Path]], problems: dict[str, str]) -> dict[str, Path]:
    """Key → file; a key that cannot be one, is doubled or names no file is put into `problems`.

    They are by key, one of each: image and label of a picture are wrong together more often than not.
    """
    found: dict[str, Path] = {}
    for key, path in keyed:
        if not path.is_file():
            problems.setdefault(key, f"{path} is no file, or a link to nothing; replace or remove it")
        elif _KEY.fullmatch(key) is None:
            said = f"{path}: the key {key!r} may have no dot or blank and 80 letters at most; rename it"
            problems.setdefault(key, said)
        elif key in found:
            said = f"duplicate key {key!r}: {found[key]} and {path}; rename or remove one"
            problems.setdefault(key, said)
        found.setdefault(key, path)
    return found


def refuse_split_name(name: str) -> None:
    """Raises ConfigError for a split that cannot be part of a shard's name."""
    if _SPLIT.fullmatch(name) is None:
        raise ConfigError(f"split {name!r}: a split's name has letters, digits, - and _; rename it")


def scan_pictures(
    pictures: Sequence[Picture], classes: ClassTable, palette: bool, map_tasks: MapTasks
) -> tuple[str, ...]:
    """The sha256 of each pair's bytes, after every pixel was decoded; raises TreeError.

    Refuses broken files, labels that are not 8-bit single-channel (or, with `palette`, indices), sizes
    that differ and ids outside the class table.
    """
    progress = Progress("checked", len(pictures))
    found: list[_Scanned] = []
    for results in map_tasks(partial(_scan, classes=classes, palette=palette), _tasks(pictures)):
        found.extend(results)
        progress.done(len(results))
    problems = [result.problem for result in found if result.problem]
    if problems:
        raise TreeError(problems)
    return tuple(result.digest for result in found)


def hash_pictures(pictures: Sequence[Picture], map_tasks: MapTasks) -> tuple[str, ...]:
    """The sha256 of each pair's bytes, as `scan_pictures` gives it, without decoding."""
    return tuple(digest for digests in map_tasks(_digests, _tasks(pictures)) for digest in digests)


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


def _tasks(pictures: Sequence[Picture]) -> list[Sequence[Picture]]:
    return [pictures[at : at + _PAIRS_A_TASK] for at in range(0, len(pictures), _PAIRS_A_TASK)]


def _scan(pictures: Sequence[Picture], classes: ClassTable, palette: bool) -> list[_Scanned]:
    return [_scan_one(picture, classes, palette) for picture in pictures]


def _scan_one(picture: Picture, classes: ClassTable, palette: bool) -> _Scanned:
    try:
        image, label = read_file(picture.image), read_file(picture.label)
        for data, path in ((image, picture.image), (label, picture.label)):
            refuse_broken_png(data, str(path))
        image_HW3 = decode_rgb(image, str(picture.image))
        label_HW = decode_label_ids(label, str(picture.label), palette)
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


def _digests(pictures: Sequence[Picture]) -> list[str]:
    return [_digest(read_file(picture.image), read_file(picture.label)) for picture in pictures]


def _digest(image: bytes, label: bytes) -> str:
    return hashlib.sha256(hashlib.sha256(image).digest() + hashlib.sha256(label).digest()).hexdigest()
