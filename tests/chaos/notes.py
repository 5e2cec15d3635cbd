"""What a rank really trained on and what its weights were, step by step, in a file that survives its death.

Two lines a step: `{"step": …, "samples": [[position, key, crc32], …]}` when it begins, with the crc32 of
each sample's pixels and label, and `{"step": …, "state": …}` when it is over, with that of all weights and
buffers. A step that counts has the first line of every rank, as no reduction is over without one of them, and
the second of rank 0, which saves; another rank may have been killed just before it.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.data.loader import Batch
from pipeline.launch.run_context import JournaledContext
from pipeline.train import loop
from pipeline.train.step import StepRunner

Sample = tuple[int, str, int]
"""Position, key and crc32."""


@dataclass
class StepNotes:
    """What all ranks noted of a step."""

    samples: list[Sample] = field(default_factory=list)
    states: dict[int, int] = field(default_factory=dict)
    """Rank → crc32 of its weights and buffers."""


def install(folder: Path) -> None:
    """Note the steps of this process in `<folder>/<attempt>-<rank>.jsonl`."""
    step, to_device, event = StepRunner.step, loop.to_device, JournaledContext.event
    pending: list[Sample] = []
    file = [-1]

    def note(line: dict[str, Any]) -> None:
        os.write(file[0], json.dumps(line).encode() + b"\n")

    def opened(context: JournaledContext, name: str, number: int, **fields: object) -> None:
        if name == "start":
            path = folder / f"{context.attempt}-{context.world.rank}.jsonl"
            file[0] = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
        event(context, name, number, **fields)

    def noting_to_device(batch: Batch, device: torch.device) -> Any:
        pending.extend(_samples(batch))
        return to_device(batch, device)

    def noting_step(runner: StepRunner, micro_batches: Any, denominators: Any, number: int) -> None:
        note({"step": number, "samples": pending})
        pending.clear()
        step(runner, micro_batches, denominators, number)
        note({"step": number, "state": state_crc(runner._model.state_dict().values())})

    JournaledContext.event, loop.to_device, StepRunner.step = opened, noting_to_device, noting_step


def state_crc(tensors: Iterable[Tensor]) -> int:
    """One number for the bits of all tensors."""
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).numpy(), crc)
    return crc


def _samples(batch: Batch) -> list[Sample]:
    pairs = zip(batch.image_BHW3, batch.label_BHW, strict=True)
    crcs = [zlib.crc32(label.tobytes(), zlib.crc32(image.tobytes())) for image, label in pairs]
    return list(zip(batch.positions, batch.keys, crcs, strict=True))


def read_notes(folder: Path, started: Callable[[str], int | None]) -> dict[int, StepNotes]:
    """Step → notes of the attempt whose step it was in the end.

    `started` gives the step at which an attempt, by its name, began; None for one that never did.
    """
    found: dict[int, StepNotes] = {}
    for attempt in sorted({path.stem.rpartition("-")[0] for path in folder.glob("*.jsonl")}):
        start = started(attempt)
        if start is None:
            continue
        found = {step: notes for step, notes in found.items() if step < start}
        for path in sorted(folder.glob(f"{attempt}-*.jsonl")):
            rank = int(path.stem.rpartition("-")[2])
            for line in map(json.loads, path.read_text().splitlines()):
                notes = found.setdefault(line["step"], StepNotes())
                notes.samples += [tuple(sample) for sample in line.get("samples", [])]
                if "state" in line:
                    notes.states[rank] = line["state"]
    return found
