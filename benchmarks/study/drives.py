"""Drives of a tree in Cityscapes' layout, and shards in which one of them is left out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipeline.data.drives import drives_of
from pipeline.data.packing.cityscapes_tree import IMAGES, LABELS, find_pictures
from pipeline.data.packing.codec import parse_codec
from pipeline.data.packing.output import open_output
from pipeline.data.packing.pack import pack_pictures
from pipeline.data.packing.parallel import Processes
from pipeline.data.packing.pictures import Picture
from pipeline.data.packing.shard_plan import PackOptions
from pipeline.data.store.cache import locked
from pipeline.errors import ConfigError, DatasetError, nearest

T = TypeVar("T")

FEW = 100
"""Pictures that are packed sooner than processes for it would start."""


@dataclass(frozen=True)
class Fold:
    """Shards with the pictures of one drive as `val` and those of all others as `train`."""

    left_out: str
    shards: str
    """Relative to the work folder."""
    data_id: str
    """The manifest's id."""


def without_common_part(drives: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The drives without a city that all of them share."""
    parts = {name: name.partition("_") for name in drives}
    if len({head for head, _, _ in parts.values()}) == 1 and all(tail for _, _, tail in parts.values()):
        return {parts[name][2]: keys for name, keys in drives.items()}
    return dict(drives)


def find_all(root: Path) -> dict[str, Picture]:
    """Key → picture of all splits that have labels; raises DatasetError for doubled keys."""
    splits = sorted(
        entry.name
        for entry in (root / IMAGES).glob("*")
        if entry.is_dir() and (root / LABELS / entry.name).is_dir()
    )
    found: dict[str, Picture] = {}
    for picture in find_pictures(root, splits or ("train",)):
        if picture.key in found:
            raise DatasetError(f"{picture.image} and {found[picture.key].image} have the same key")
        found[picture.key] = picture
    return found


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most that many of them, evenly out of all; 0 takes all."""
    if most <= 0 or most >= len(items):
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, most).round().astype(int).tolist()]


def make_folds(
    root: Path, work: Path, only: Sequence[str], test_pictures: int, codec: str, processes: int
) -> tuple[Fold, ...]:
    """One fold a drive, packed where it is not yet; `only` picks the drives that are left out."""
    pictures = find_all(root)
    drives = without_common_part(drives_of(pictures))
    for name in only:
        if name not in drives:
            raise ConfigError(f"no drive {name!r}{nearest(name, drives)}; there are: {', '.join(drives)}")
    folds = []
    for name, keys in drives.items():
        if only and name not in only:
            continue
        rest = [key for other, others in drives.items() if other != name for key in others]
        split = [replace(pictures[key], split="train") for key in sorted(rest)]
        split += [replace(pictures[key], split="val") for key in evenly(keys, test_pictures)]
        folds.append(_pack(split, name, work, codec, processes))
    return tuple(folds)


def _pack(pictures: Sequence[Picture], left_out: str, work: Path, codec: str, processes: int) -> Fold:
    """The fold of these pictures, by the pipeline's own packer. Whoever comes second waits and finds it."""
    options = PackOptions(codec=parse_codec(codec))
    chosen = "\n".join([codec, *(f"{p.split} {p.key} {p.num_bytes}" for p in pictures)])
    name = f"data/without_{left_out}-{hashlib.sha256(chosen.encode()).hexdigest()[:8]}"
    out = work / name
    out.parent.mkdir(parents=True, exist_ok=True)
    if len(pictures) < FEW:
        processes = 1
    with locked(out.with_name(f"{out.name}.lock"), wait=True), Processes(processes) as several:
        report = pack_pictures(pictures, f"all but {left_out}", open_output(str(out)), options, several)
    return Fold(left_out, name, report.manifest_id)
