"""Drives, told apart by the keys of their samples, and parts of a split that are whole drives.

Frames of one drive show the same street a moment later, so a network is judged on a drive only where it saw
no frame of it. A key is CITY_DRIVE_FRAME, or DRIVE_FRAME: what stands before the frame is the drive. Where
that gives nearly every picture a drive of its own (Cityscapes' snippets, the drawn mini city), the part
before is left away too, and each city is a drive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import require
from pipeline.errors import ConfigError, DatasetError, nearest

FEWEST = 2
"""Pictures that a drive has on average, at least."""
NEAR = 0.1
"""How far from the share asked for the held-out one may be where a nearer choice would take a search."""
SHOWN = 20
"""Most drives that a message lists."""


@dataclass(frozen=True)
class Part:
    """Which samples of a split: those of some drives alone, or all but those."""

    drives: tuple[str, ...]
    """Beginnings of their keys, each up to an underscore."""
    is_held_out: bool
    """Whether the part is these drives, and not the rest."""

    def has(self, key: str) -> bool:
        """Whether the sample of that key belongs to the part."""
        # Up to the underscore: drive 1 is not the beginning of drive 10.
        is_theirs = key in self.drives or key.startswith(tuple(f"{drive}_" for drive in self.drives))
        return is_theirs == self.is_held_out

    def __str__(self) -> str:
        names = ", ".join(self.drives)
        return f"{names} alone" if self.is_held_out else f"without {names}"


def drives_of(keys: Iterable[str]) -> dict[str, list[str]]:
    """Drive → its keys, both sorted; raises DatasetError where there are fewer than two drives."""
    ordered = sorted(keys)
    found = _told_apart(ordered)
    if not found:
        raise DatasetError(
            f"the {len(ordered)} pictures are of one drive ({ordered[0] if ordered else 'none'} …); leaving "
            "one out takes two or more, told apart by what stands before the frame in CITY_DRIVE_FRAME: pack "
            "pictures of other drives too"
        )
    return found


def propose_held_out(keys: Iterable[str], share: float, seed: int) -> tuple[str, ...]:
    """Whole drives, sorted, with nearly that share of all samples: what `data.held_out` may be, comma-joined.

    At least one drive, and at most half of the samples; within a tenth of the share, or as near to it as any
    choice is. The seed decides between the choices that are. A function of the arguments alone, and not of
    the keys' order. Raises ConfigError for a share outside (0, 0.5], DatasetError where there are fewer than
    two drives: parts of one drive, even with a gap between them, show the same streets, and a score on them
    chooses what remembers best.
    """
    require(0.0 < share <= 0.5, f"the share of samples to hold out is above 0, at most 0.5, got {share}")
    sizes = {drive: len(of_drive) for drive, of_drive in drives_of(keys).items()}
    num_samples = sum(sizes.values())
    wanted, below_half = share * num_samples, (1 << num_samples // 2 + 1) - 1
    order = sorted(sizes, key=lambda drive: hashlib.sha256(f"{seed} {drive}".encode()).digest())
    totals = [1]  # after each drive: bit n is set where some choice of the drives so far has n samples
    total = 0
    for drive in order:
        totals.append(totals[-1] | totals[-1] << sizes[drive] & below_half)
        total = _nearest_total(totals[-1], wanted)
        if total and abs(total - wanted) <= NEAR * wanted:
            break
    chosen = []
    for before, drive in reversed(list(zip(totals[:-1], order, strict=False))):
        if not before >> total & 1:  # there was no such choice without it
            chosen.append(drive)
            total -= sizes[drive]
    return tuple(sorted(chosen))


def refuse_wrong_drives(unknown: Sequence[str], num_left: int, split: str, keys: Sequence[str]) -> None:
    """Raises ConfigError, with the drives there are, for unknown ones and where none is left to train on."""
    found = _told_apart(sorted(keys))
    if unknown:
        raise ConfigError(
            f"--data.held_out {unknown[0]}: no sample of split {split} is of that drive"
            f"{nearest(unknown[0], found)}; {_listed(found, keys)}"
        )
    if num_left == 0:
        raise ConfigError(
            f"--data.held_out takes all {len(keys)} samples of split {split} and leaves none to train on; "
            f"name fewer of its drives; {_listed(found, keys)}"
        )


def _told_apart(keys: Sequence[str]) -> dict[str, list[str]]:
    """Drive → its keys, in their order; nothing where there are fewer than two drives."""
    found: dict[str, list[str]] = {}
    for dropped in (1, 2):
        deeper: dict[str, list[str]] = {}
        for key in keys:
            deeper.setdefault("_".join(key.split("_")[:-dropped]), []).append(key)
        if len(deeper) >= 2 and "" not in deeper:
            found = deeper
        if found and len(keys) >= FEWEST * len(found):
            break
    return dict(sorted(found.items()))


def _nearest_total(totals: int, wanted: float) -> int:
    """The number above 0 of the set bit nearest to what is wanted, of two the smaller; 0 without one."""
    split = int(wanted) + 1
    below = (totals & (1 << split) - 1).bit_length() - 1
    rest = totals >> split
    above = split + (rest & -rest).bit_length() - 1 if rest else 0
    return min((number for number in (below, above) if number), key=lambda n: abs(n - wanted), default=0)


def _listed(drives: Mapping[str, Sequence[str]], keys: Sequence[str]) -> str:
    if not drives:
        return f"its keys are such as {min(keys)}, of which the beginning up to an underscore names samples"
    shown = [f"{name} ({len(found)})" for name, found in list(drives.items())[:SHOWN]]
    more = f" and {len(drives) - SHOWN} more" if len(drives) > SHOWN else ""
    return f"its drives (samples) are {', '.join(shown)}{more}"
