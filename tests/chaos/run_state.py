"""What a run has come to, as plain values, and in what two runs differ."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.tracking.journal import COMMIT, START, Event, Metrics, Picture, Record, Table, read_journal
from pipeline.train import checkpoint
from pipeline.train.metrics import WORKER_RESTARTS
from tests.chaos.notes import Sample, read_notes
from tests.chaos.points import BATCH, STEPS

TIMED = ("_per_s", "_s", "_s_per_sample", "wait_share")
"""Ends of the names of measured times, which no two runs have in common."""
UNLIKE = (*TIMED, WORKER_RESTARTS)
TENSORS = (checkpoint.WEIGHTS, checkpoint.AVERAGED, checkpoint.OPTIMIZER)
TOKEN = re.compile(r"\d{4}-[0-9a-f]{6}")


@dataclass(frozen=True)
class RunState:
    """All that must be the same however often the run was killed."""

    tensors: dict[str, str]
    """File → sha256, of the newest checkpoint; and of the best one's weights."""
    progress: dict[str, Any]
    """Of state.json, with the score."""
    curves: dict[str, float]
    """`key @step` → value, of every point that must be alike."""
    timed: list[str]
    """Names of the others: measured times, and how many loader workers were replaced."""
    shown: dict[str, Any]
    """Tables, and digests of pictures."""
    samples: dict[str, list[Sample]]
    """By step, in the order of positions: what was trained on."""
    states: dict[str, int]
    """crc32 of weights and buffers after each step, the same on all ranks."""
    kept: list[str]
    """Files of the checkpoints that are left."""
    commits: list[int]
    """Steps of which the journal says, after the fold, that they were saved; one whose record was not
    written is that from which an attempt began."""
    worker_restarts: int
    """Loader workers of rank 0 that were replaced."""


def read_run(run_dir: Path, notes: Path) -> tuple[RunState, list[str]]:
    """The state of an ended run, and what is wrong with it whatever the reference says."""
    records = read_journal(run_dir)
    wrong: list[str] = []
    points = [(f"{k} @{r.step}", v) for r in records if isinstance(r, Metrics) for k, v in r.values.items()]
    curves = {name: value for name, value in points if not _key(name).endswith(UNLIKE)}
    timed = sorted(name for name, _ in points if _key(name).endswith(UNLIKE))
    restarts = sum(int(value) for name, value in points if _key(name) == WORKER_RESTARTS)
    shown = _shown(run_dir, records, [name for name, _ in points], wrong)
    samples, states = _noted(run_dir, notes, wrong)
    tensors, progress = _saved(run_dir, wrong)
    kept = _files(run_dir, wrong)
    commits = _committed(records, wrong)
    return RunState(
        tensors, progress, curves, timed, shown, samples, states, kept, commits, restarts
    ), wrong  # fmt: skip


def differences(found: RunState, reference: RunState) -> list[str]:
    """A line for each part in which the two differ, with the first few places."""
    lines = []
    for name, expected in vars(reference).items():
        value = vars(found)[name]
        if value == expected:
            continue
        if isinstance(expected, list):
            lines.append(f"{name}: {_few(Counter(value) - Counter(expected))} more, "
                         f"{_few(Counter(expected) - Counter(value))} missing")  # fmt: skip
        else:
            places = [key for key in {**expected, **value} if value.get(key) != expected.get(key)]
            lines.append(f"{name}: other at {_few(places)}")
    return lines


def _few(places: Any) -> str:
    listed = [str(place) for place in places]
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")


def _shown(run_dir: Path, records: list[Record], names: list[str], wrong: list[str]) -> dict[str, Any]:
    """Tables, and digests of pictures; a point, of those names, that is there twice is wrong, like these."""
    shown = [r for r in records if isinstance(r, Picture | Table)]
    names = names + [f"{r.key} @{r.step}" for r in shown]
    wrong += [f"recorded {count} times: {name}" for name, count in Counter(names).items() if count > 1]
    return {
        f"{r.key} @{r.step}": [list(row) for row in r.rows]
        if isinstance(r, Table)
        else _sha256(run_dir / r.path)
        for r in shown
    }


def _committed(records: list[Record], wrong: list[str]) -> list[int]:
    events = [record for record in records if isinstance(record, Event)]
    counts = Counter(event.step for event in events if event.name == COMMIT)
    wrong += [f"step {step} was committed {count} times" for step, count in counts.items() if count > 1]
    return sorted({*counts, *(event.step for event in events if event.name == START and event.step)})


def _key(point: str) -> str:
    return point.partition(" @")[0]


def _noted(run_dir: Path, folder: Path, wrong: list[str]) -> tuple[dict[str, list[Sample]], dict[str, int]]:
    """Samples and states by step, checked against the plan: each position once, each step's in its place."""
    starts = {path.stem.partition("-")[2]: path for path in (run_dir / "journal").glob("*.jsonl")}

    def started(attempt: str) -> int | None:
        lines = starts[attempt].read_text().splitlines() if attempt in starts else []
        events = [json.loads(line) for line in lines if f'"name":"{START}"' in line and line.endswith("}")]
        return events[0]["step"] if events else None

    notes = read_notes(folder, started)
    if sorted(notes) != list(range(STEPS)):
        wrong.append(f"steps {sorted(notes)} were trained, not 0 to {STEPS - 1}")
    samples: dict[str, list[Sample]] = {}
    states: dict[str, int] = {}
    for step, noted in sorted(notes.items()):
        samples[str(step)] = sorted(noted.samples)
        positions = [position for position, _, _ in samples[str(step)]]
        if positions != list(range(step * BATCH, (step + 1) * BATCH)):
            wrong.append(f"step {step} trained on positions {positions}")
        if 0 not in noted.states:
            wrong.append(f"rank 0 did not finish step {step}")
        if len(set(noted.states.values())) > 1:
            wrong.append(f"ranks hold different weights or buffers after step {step}")
        states[str(step)] = noted.states.get(0, -1)
    return samples, states


def _saved(run_dir: Path, wrong: list[str]) -> tuple[dict[str, str], dict[str, Any]]:
    newest, best = checkpoint.newest_checkpoint(run_dir), checkpoint.best_checkpoint(run_dir)
    if newest is None or best is None:
        wrong.append("no whole checkpoint with a score")
        return {}, {}
    tensors = {name: _sha256(newest / name) for name in TENSORS}
    tensors["best"] = _sha256(best / checkpoint.WEIGHTS)
    read = checkpoint.read_checkpoint(newest)
    score = vars(read.score) if read.score else None
    best_score = checkpoint.read_score(best)
    progress = {
        "progress": read.state["progress"], "order": read.state["order"], "score": score,
        "best score": vars(best_score) if best_score else None, "best step": checkpoint.step_of(best),
    }  # fmt: skip
    return tensors, progress


def _files(run_dir: Path, wrong: list[str]) -> list[str]:
    """Checkpoints' files without the attempt in their names; what nobody asked to keep is wrong."""
    kept = []
    for path in sorted((run_dir / "checkpoints").rglob("*")):
        if path.is_file():
            kept.append(TOKEN.sub("ATTEMPT", path.relative_to(run_dir).as_posix()))
    for path in run_dir.rglob("*"):
        if path.suffix in (".tmp", ".part", ".sealing") or path.name.startswith(("unfinished-", "damaged-")):
            wrong.append(f"left over: {path.relative_to(run_dir)}")
    return kept


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
