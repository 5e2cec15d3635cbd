"""Journals where nothing can be appended to: sealed segments, one after the other, of each attempt's file.

    journal/0003-0002-3f9c1a/000000.jsonl     empty: from here on everybody knows of this journal
    journal/0003-0002-3f9c1a/000001.jsonl     the first lines of journal/0003-0002-3f9c1a.jsonl
    journal/0003-0002-3f9c1a/000002.jsonl     those that followed, up to the next shipment
    journal/0003-0002-3f9c1a/000003.jsonl     empty: this journal is over, nothing can follow

Segments are whole lines and never change; what is shipped of a file is the sum of their sizes, so nobody
keeps an account beside. Put together in their order they are the file, but for a line that was torn.

The empty first one is what lets another machine end a journal of which it has seen no line: who is
about to send the first of them has announced it before it made sure that it still may.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.tracking.journal import FOLDER


@dataclass(frozen=True)
class Segment:
    """Lines that are to be shipped under a name that nothing has yet."""

    name: str
    data: bytes


def unshipped(run_dir: Path, shipped: Mapping[str, int]) -> list[Segment]:
    """What the journals that are not over have beyond the segments there; `shipped` is name → bytes."""
    segments = []
    for path, lines in _beyond(run_dir, shipped):
        known = _of(path.stem, shipped)
        if not known:
            segments.append(Segment(_name(path.stem, 0), b""))
        if not _is_over(known, shipped):
            segments.append(Segment(_name(path.stem, _number(known[-1]) + 1 if known else 1), lines))
    return segments


def num_lines_beyond(run_dir: Path, shipped: Mapping[str, int]) -> int:
    """Lines of the journals here that are not there, those that came after the end of a journal too."""
    return sum(lines.count(b"\n") for _, lines in _beyond(run_dir, shipped))


def continues(run_dir: Path, shipped: Mapping[str, int]) -> bool:
    """Whether the journals here are those there, or go on from them; False where they are of another past."""
    for stem in stems(shipped):
        known = _of(stem, shipped)
        try:
            num_bytes = (run_dir / FOLDER / f"{stem}.jsonl").stat().st_size
        except FileNotFoundError:
            num_bytes = 0
        there = sum(shipped[name] for name in known)
        if num_bytes < there or (num_bytes > there and _is_over(known, shipped)):
            return False
    return True


def seal_of(stem: str, shipped: Mapping[str, int]) -> str | None:
    """Name of the empty segment that ends a journal; None where it is over already."""
    known = _of(stem, shipped)
    return None if _is_over(known, shipped) else _name(stem, _number(known[-1]) + 1)


def segments_of(shipped: Mapping[str, int]) -> dict[str, list[str]]:
    """File of a journal that has lines, relative to the run's folder → its segments with any, in order."""
    found = {stem: [name for name in _of(stem, shipped) if shipped[name]] for stem in stems(shipped)}
    return {f"{FOLDER}/{stem}.jsonl": names for stem, names in found.items() if names}


def is_segment(name: str) -> bool:
    """True for the name of a segment."""
    return name.startswith(f"{FOLDER}/") and name.endswith(".jsonl") and name.count("/") == 2


def stems(shipped: Mapping[str, int]) -> list[str]:
    """The journals that are there, by the names of their files."""
    return sorted({name.split("/")[1] for name in shipped if is_segment(name)})


def _beyond(run_dir: Path, shipped: Mapping[str, int]) -> list[tuple[Path, bytes]]:
    """Each journal that has whole lines beyond its segments, and these lines."""
    found = []
    for path in sorted((run_dir / FOLDER).glob("*.jsonl")):
        with path.open("rb") as file:
            file.seek(sum(shipped[name] for name in _of(path.stem, shipped)))
            lines = file.read()
        if whole := lines[: lines.rfind(b"\n") + 1]:
            found.append((path, whole))
    return found


def _of(stem: str, shipped: Mapping[str, int]) -> list[str]:
    return sorted(name for name in shipped if is_segment(name) and name.split("/")[1] == stem)


def _is_over(known: list[str], shipped: Mapping[str, int]) -> bool:
    return bool(known) and _number(known[-1]) > 0 and shipped[known[-1]] == 0


def _number(name: str) -> int:
    return int(name.rpartition("/")[2].removesuffix(".jsonl"))


def _name(stem: str, number: int) -> str:
    return f"{FOLDER}/{stem}/{number:06d}.jsonl"
