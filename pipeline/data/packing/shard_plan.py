"""Which shards a tree becomes, and whether there is room for them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.data.labels import CITYSCAPES, ClassTable
from pipeline.data.packing.codec import STRIPED, Codec
from pipeline.data.packing.output import LocalOutput, Output
from pipeline.data.packing.pictures import Picture
from pipeline.errors import WorldStateError

_BYTES_A_SAMPLE = 4096
"""Tar headers, padding and index lines of a sample, at most."""
_GROWTH = {"striped": 1.1, "keep": 1.0, "jpeg": 1.0}
"""Bytes of shards as a share of their source's, at most, as far as photographs go."""


@dataclass(frozen=True)
class PackOptions:
    """What a tree is packed with: all that the shards depend on beside the pictures."""

    classes: ClassTable = CITYSCAPES
    """What the label files' ids mean."""
    codec: Codec = STRIPED
    """How images are stored."""
    palette: bool = False
    """Indices of palette PNGs are label ids."""
    samples_per_shard: int = 1000
    """Samples of a shard, at most."""
    bytes_per_shard: int = 256 * 2**20
    """Bytes of a shard's source files, at most, unless a single sample has more."""


@dataclass(frozen=True)
class ShardTask:
    """A shard to write."""

    name: str
    pictures: tuple[Picture, ...]


def plan_shards(
    pictures: Sequence[Picture], samples_per_shard: int, bytes_per_shard: int
) -> tuple[ShardTask, ...]:
    """The shards, with their pictures in order; each has at least one picture, and keeps to both limits."""
    plan: dict[str, list[Picture]] = {}
    shards_of: dict[str, int] = {}
    room = 0
    for picture in pictures:
        size, split = picture.num_bytes, picture.split
        name = _shard_name(split, shards_of.get(split, 0) - 1)
        if split not in shards_of or len(plan[name]) >= samples_per_shard or size > room:
            name = _shard_name(split, shards_of.get(split, 0))
            shards_of[split] = shards_of.get(split, 0) + 1
            plan[name], room = [], bytes_per_shard
        plan[name].append(picture)
        room -= size
    return tuple(ShardTask(name, tuple(members)) for name, members in plan.items())


def _shard_name(split: str, number: int) -> str:
    return f"{split}/{split}-{number:06d}.tar"


def refuse_no_space(output: Output, tasks: Sequence[ShardTask], codec: Codec) -> None:
    """Raises WorldStateError where a folder has not the room for these shards."""
    if not isinstance(output, LocalOutput):
        return
    pictures = [picture for task in tasks for picture in task.pictures]
    needed = sum(_GROWTH[codec.kind] * picture.num_bytes + _BYTES_A_SAMPLE for picture in pictures)
    folder = output.folder
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise WorldStateError(
            f"no space for {amount(needed)} of shards at {folder}: {amount(free)} are free; "
            "free some, or take another --out"
        )


def refuse_unwritable(output: Output) -> None:
    """Raises WorldStateError where nothing can be made at a folder: it is tried, and leaves no trace."""
    if not isinstance(output, LocalOutput):
        return
    folder = output.folder
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        tempfile.TemporaryDirectory(dir=existing).cleanup()
    except OSError as error:
        what = "write into" if existing == folder else "make"
        raise WorldStateError(
            f"cannot {what} {folder}: {error.strerror}; take another --out, where you may make folders"
        ) from error


def amount(num_bytes: float) -> str:
    """A number of bytes as a person reads it, in MB or GB."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
