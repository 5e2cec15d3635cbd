"""What a campaign comes to: points by kind and phase, and the kills that came of those that were planned."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.chaos.nursery_client import ROOT
from tests.chaos.points import PHASES

Row = dict[str, Any]
Strikes = dict[str, dict[str, dict[str, int]]]
"""Kind of run → phase → `planned` and `made`."""


def strikes(rows: Sequence[Row]) -> Strikes:
    """How many kills were planned and came, in every phase that a kind of run has."""
    planned = Counter(
        (row["launcher"], attempt["strike"]["phase"])
        for row in rows
        for attempt in row["attempts"]
        if attempt["strike"]
    )
    made = Counter((row["launcher"], hit["phase"]) for row in rows for hit in row["struck"])
    return {
        launcher: {
            phase: {"planned": planned[launcher, phase], "made": made[launcher, phase]} for phase in phases
        }
        for launcher, phases in PHASES.items()
        if any(row["launcher"] == launcher for row in rows)
    }


def not_struck(counted: Strikes) -> tuple[list[str], list[str]]:
    """Phases of which a kill that was planned did not come, and those for which none was planned."""
    places = [(f"{kind} {phase}", n) for kind, phases in counted.items() for phase, n in phases.items()]
    missing = [name for name, count in places if count["made"] < count["planned"]]
    return missing, [name for name, count in places if not count["planned"]]


def table(rows: Sequence[Row]) -> Iterator[str]:
    """How many points of each kind and phase ended bit for bit as the undisturbed run, and how many kills."""
    head = f"{'kind':<8} | {'killed in':<14} | points | kills made | at another world size | identical"
    yield f"| {head} |"
    yield "|---|---|---|---|---|---|"
    for launcher, phases in strikes(rows).items():
        whole = {name: sum(count[name] for count in phases.values()) for name in ("planned", "made")}
        for phase, count in {**phases, "all": whole}.items():
            group = [row for row in rows if row["launcher"] == launcher and phase in (row["phase"], "all")]
            moved, same = sum(row["moves"] for row in group), sum(not row["wrong"] for row in group)
            kills = f"{count['made']} of {count['planned']}"
            yield f"| {launcher:<8} | {phase:<14} | {len(group)} | {kills} | {moved} | {same} |"


def write(path: Path, rows: list[Row]) -> None:
    """Write rows and counts as JSON, with where they come from."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from report import write_report

    command = f'make chaos ARGS="{shlex.join(sys.argv[1:])}"'
    more = {"command": command, "strikes": strikes(rows)}
    write_report(str(path), "chaos", rows, ("torch", "ray", "mlflow"), more)
