"""Journals where nothing can be appended to: sealed segments, one after the other, of each attempt's file.

    journal/0003-0002-3f9c1a/000001.jsonl     the first lines of journal/0003-0002-3f9c1a.jsonl
    journal/0003-0002-3f9c1a/000002.jsonl     those that followed, up to the next shipment
    journal/0003-0002-3f9c1a/000003.jsonl     empty: this journal is over, nothing can follow

Segments are whole lines and never change; what is shipped of a file is the sum of their sizes, so nobody
keeps an account beside. Put together in their order they are the file, but for a line that was torn.
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
    """What the journals have beyond the segments that are there; `shipped` is their name → bytes."""
    segments = []
    for path in sorted((run_dir / FOLDER).glob("*.jsonl")):
        known = _of(path.stem, shipped)
        with path.open("rb") as file:
            file.seek(sum(shipped[name] for name in known))
            lines = file.read()
        whole = lines[: lines.rfind(b"\n") + 1]
        if whole:
            segments.append(Segment(_name(path.stem, len(known) + 1), whole))
    return segments


def seals(shipped: Mapping[str, int]) -> list[str]:
    """Names of the empty segments that end all journals which are not over yet."""
    names = []
    for stem in _stems(shipped):
        known = _of(stem, shipped)
        if shipped[known[-1]]:
            names.append(_name(stem, len(known) + 1))
    return names


def segments_of(shipped: Mapping[str, int]) -> dict[str, list[str]]:
    """File of a journal, relative to the run's folder → its segments that have lines, in their order."""
    return {
        f"{FOLDER}/{stem}.jsonl": [name for name in _of(stem, shipped) if shipped[name]]
        for stem in _stems(shipped)
    }


def is_segment(name: str) -> bool:
    """True for the name of a segment."""
    return name.startswith(f"{FOLDER}/") and name.endswith(".jsonl") and name.count("/") == 2


def _stems(shipped: Mapping[str, int]) -> list[str]:
    return sorted({name.split("/")[1] for name in shipped if is_segment(name)})


def _of(stem: str, shipped: Mapping[str, int]) -> list[str]:
    return sorted(name for name in shipped if is_segment(name) and name.split("/")[1] == stem)


def _name(stem: str, number: int) -> str:
    return f"{FOLDER}/{stem}/{number:06d}.jsonl"
