"""Horizontal bars as an SVG file, readable on light and dark pages alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_WIDTH, _LABEL, _ROW, _TITLE = 760, 190, 24, 40


@dataclass(frozen=True)
class Bar:
    """One line: a name, a length, a part of it in a darker tone, and what is written after it."""

    name: str
    value: float
    part: float
    note: str


def write_bars(path: Path, charts: Sequence[tuple[str, Sequence[Bar]]], caption: str) -> None:
    """Writes the charts below each other; each has a scale of its own."""
    lines: list[str] = []
    at = 10
    for title, bars in charts:
        lines.append(_text(10, at + 18, title, "bold"))
        at += _TITLE
        longest = max(bar.value for bar in bars)
        for bar in bars:
            lines += _bar(at, bar, (_WIDTH - _LABEL - 170) / longest)
            at += _ROW
        at += 16
    lines.append(_text(10, at + 6, caption, "normal"))
    at += 24
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {at}" width="{_WIDTH}" height="{at}"'
    )
    style = ' font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="#fff"/>'
    path.write_text("\n".join([head + style, *lines, "</svg>"]) + "\n")


def _bar(at: int, bar: Bar, px: float) -> list[str]:
    """The name, the whole bar, its darker part, and the note."""
    return [
        _text(_LABEL - 10, at + 15, bar.name, "normal", "end"),
        f'<rect x="{_LABEL}" y="{at + 3}" width="{bar.value * px:.1f}" height="16" fill="#9ec1e6"/>',
        f'<rect x="{_LABEL}" y="{at + 3}" width="{bar.part * px:.1f}" height="16" fill="#2c6cb0"/>',
        _text(_LABEL + bar.value * px + 8, at + 15, bar.note, "normal"),
    ]


def _text(x: float, y: float, text: str, weight: str, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="#222" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )
