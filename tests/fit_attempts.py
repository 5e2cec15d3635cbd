"""Attempts at `fit()` in real processes: `tests/dist/fit_worker.py` is one rank of them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.forked_ranks import run_ranks

WORKER = Path(__file__).parent / "dist" / "fit_worker.py"


@dataclass(frozen=True)
class Attempt:
    """What a worker group is to do; it stops on the wish of its last rank alone."""

    run_dir: Path
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    stop_step: int | None = None
    group_bytes: int = 2**25
    """Gradients that travel together at least, where the order of their sum is fixed."""


def run_attempts(shards: str, size: int, attempts: Sequence[Attempt]) -> list[list[dict[str, Any]]]:
    """What each rank reports of each attempt; one group of `size` processes does them all."""
    cases = []
    for attempt in attempts:
        attempt.run_dir.mkdir(exist_ok=True)
        cases.append({
            "shards": shards, "run_dir": str(attempt.run_dir), "logs": str(attempt.run_dir),
            "settings": attempt.settings, "stop_step": attempt.stop_step, "attempt": attempt.name,
            "group_bytes": attempt.group_bytes,
        })  # fmt: skip
    run_dir = attempts[0].run_dir
    told = {"store": str(run_dir / f"store-{attempts[0].name}"), "attempts": cases}
    ended = run_ranks(size, [WORKER, json.dumps(told)])
    assert [rank.code for rank in ended] == [0] * size, ended
    return [
        [json.loads((attempt.run_dir / f"{attempt.name}-{rank}.json").read_text()) for rank in range(size)]
        for attempt in attempts
    ]
