"""The published form of the results: Markdown, with every figure from the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from report import machine, versions

_HEAD = "| loader | format | CPU ms a sample | samples/s a core | limit ms | share of limit | x striped |"


def write_note(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    pictures: Mapping[str, str],
    memory: Mapping[str, Any],
    packages: Sequence[str],
) -> None:
    """Writes what was measured on what, a table a size, and the memory where it was watched."""
    found = ", ".join(f"{name} {number}" for name, number in versions(packages).items())
    lines = ["# CPU time a training sample, loader by loader", "", f"- Machine: {machine()}.", f"- {found}."]
    for size, what in pictures.items():
        mine = [row for row in rows if row["size"] == size]
        title = f"## Pictures of {size}, crops of {mine[0]['crop']}"
        lines += ["", title, f"{what}.", "", _HEAD, "|---|---|---|---|---|---|---|"]
        lines += [_line(row) for row in mine]
    if memory:
        lines += ["", memory_line(memory)]
    path.write_text("\n".join(lines) + "\n")


def memory_line(memory: Mapping[str, Any]) -> str:
    """What was watched, as a sentence."""
    readings = memory["memory_mb"]
    return (
        f"Memory of the loader's processes over {memory['batches']} batches, shared pages counted once: "
        f"{readings[0]:.0f} MB after the first fiftieth, {readings[-1]:.0f} MB at the end, "
        f"at most {max(readings):.0f} MB."
    )


def _line(row: Mapping[str, Any]) -> str:
    return (
        f"| {row['loader']} | {row['format']} | {row['cpu_ms_per_sample']:.2f} "
        f"| {row['samples_per_s_core']:.1f} | {row['limit_ms_per_sample']:.2f} "
        f"| {row['share_of_limit']:.0%} | {row['times_striped']:.2f} |"
    )
