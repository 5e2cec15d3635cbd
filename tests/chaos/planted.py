"""Bugs to be planted in a rank's process, so that the harness is shown to find what it is there for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.launch import shipment
from pipeline.launch.shipment import Upload
from pipeline.model.segmenter import Segmenter
from pipeline.tracking.journal import Journal
from pipeline.train import fixed_order
from pipeline.train import run as run_parts
from pipeline.train.checkpoint import STATE, list_committed
from pipeline.train.checkpoint_folder import CheckpointFolder, Content
from pipeline.train.model_card import MODEL_CARD
from pipeline.train.state import TrainState
from pipeline.train.step import StepRunner
from pipeline.world import World
from tests.chaos.seams_of_steps import StepSeams


def momentum_dropped() -> None:
    """The optimizer begins anew after a resume."""
    run_parts.restore_optimizer = lambda *_: None


def position_off_by_one() -> None:
    """A resume begins at the sample after the next one."""

    def wrong(**progress: Any) -> TrainState:
        return TrainState(**(progress | {"position": progress["position"] + 1} if progress else progress))

    run_parts.TrainState = wrong  # type: ignore[assignment]  # that is the bug


def commit_first() -> None:
    """COMMIT is on the disk before the files that it speaks of."""

    def wrong(folder: CheckpointFolder, content: Content) -> None:
        files = {name: b"".join(bytes(piece) for piece in found) for name, found in content.tensors.items()}
        files[MODEL_CARD] = json.dumps(content.card.to_dict()).encode()
        files[STATE] = json.dumps(content.state).encode()
        folder.path.mkdir(parents=True)
        folder._files = {
            name: {"bytes": len(found), "sha256": hashlib.sha256(found).hexdigest()}
            for name, found in files.items()
        }
        folder.commit("planted")
        folder._files = {}
        for name, found in files.items():
            folder.put(name, [found])

    CheckpointFolder.put_all = wrong


def older_checkpoint() -> None:
    """A resume begins at the checkpoint before the newest: the numbers are right, and work is lost."""
    newest = run_parts.newest_for_all

    def wrong(run_dir: Path, world: World) -> Path | None:
        found = newest(run_dir, world)
        older = [folder for folder in list_committed(run_dir) if folder != found]
        return older[0] if older else found

    run_parts.newest_for_all = wrong


def commit_of_upload_first() -> None:
    """COMMIT is at the store before the files that it speaks of."""
    planned = shipment._of_checkpoint

    def wrong(folder: Path, names: Mapping[str, int]) -> Iterator[Upload]:
        yield from list(planned(folder, names))[::-1]

    shipment._of_checkpoint = wrong


def seams_gone() -> None:
    """The forward passes none of its seams: a harness that kills nothing must not say that all is well."""
    StepSeams._forward = lambda *_: None


def dropout_by_rank() -> None:
    """Dropout draws from a generator of the process, which starts anew with it."""
    StepRunner._seed_dropout = lambda *_: None


def metric_twice() -> None:
    """A point of a curve is recorded twice."""
    metrics = Journal.metrics

    def wrong(journal: Journal, step: int, values: Mapping[str, float]) -> None:
        metrics(journal, step, values)
        if step == 4:
            metrics(journal, step, values)

    Journal.metrics = wrong


def buffers_of_other_ranks_dropped() -> None:
    """Ranks other than 0 begin with fresh BatchNorm statistics after a resume."""
    assemble_state = fixed_order.broadcast_state

    def wrong(module: nn.Module, world: Any) -> None:
        assemble_state(module, world)
        if world.rank > 0 and isinstance(module, Segmenter):
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.reset_running_stats()

    fixed_order.broadcast_state = wrong


BUGS: Mapping[str, Callable[[], None]] = {
    bug.__name__: bug
    for bug in (
        momentum_dropped, position_off_by_one, commit_first, dropout_by_rank, metric_twice,
        buffers_of_other_ranks_dropped, older_checkpoint, commit_of_upload_first, seams_gone,
    )
}  # fmt: skip
