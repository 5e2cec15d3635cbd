"""Checkpoints as they are read: safetensors and JSON in a folder that exists once `COMMIT.json` says so.

    checkpoints/step_00000500-<attempt>/
        model.safetensors      weights and buffers
        ema.safetensors        averaged weights, where EMA is on
        optimizer.safetensors  optimizer state by parameter name
        model.json             what the weights are: enough for inference
        state.json             progress, order of the data, config, versions
        COMMIT.json            bytes and sha256 of all of these, and of itself; written last
        score.json             validation score of these weights, where they were evaluated

Every file is on the disk before COMMIT is; a folder without it, or whose files differ from it, does not
exist for a reader. The score comes later: weights are saved before they are evaluated, so that no
evaluation can cost a step. Ray's own bookkeeping is not needed to resume. docs/checkpoints.md has all of it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.disk import file_sha256
from pipeline.errors import CheckpointError, WorldStateError
from pipeline.train.model_card import MODEL_CARD, ModelCard, read_card
from pipeline.train.signed_json import read_signed

logger = logging.getLogger(__name__)

FORMAT = "ccs-checkpoint/2"
COMMIT, SCORE = "COMMIT.json", "score.json"
WEIGHTS, AVERAGED, OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer.safetensors"
STATE = "state.json"
NEEDED = (WEIGHTS, MODEL_CARD, STATE)
"""What no checkpoint is without."""


@dataclass(frozen=True)
class Score:
    """What an evaluation of a checkpoint's weights gave."""

    miou: float
    pixel_accuracy: float


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint: where it is and what its JSON files say."""

    path: Path
    card: ModelCard
    state: Mapping[str, Any]
    score: Score | None


def checkpoint_folder(run_dir: Path, step: int, attempt: str) -> Path:
    """Where an attempt keeps the checkpoint of a step."""
    return run_dir / "checkpoints" / f"step_{step:08d}-{attempt}"


def read_checkpoint(folder: Path) -> Checkpoint:
    """The committed checkpoint in that folder, every file verified; raises CheckpointError."""
    verify(folder)
    score = read_score(folder)
    state = json.loads((folder / STATE).read_text())
    return Checkpoint(folder, _scored(read_card(folder), score), state, score)


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one file, on the CPU; raises CheckpointError where it cannot be read."""
    try:
        return load_file(folder / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read {folder / name}: {error}") from error


def read_model(folder: Path) -> tuple[ModelCard, dict[str, Tensor]]:
    """The model to predict with, from a checkpoint or an exported folder; averaged weights come first.

    A checkpoint's hashes are verified. Raises CheckpointError for anything that is not whole.
    """
    score = None
    if (folder / STATE).exists() or (folder / COMMIT).exists():
        verify(folder)
        score = read_score(folder)
    card = _scored(read_card(folder), score)
    return card, read_tensors(folder, AVERAGED if (folder / AVERAGED).exists() else WEIGHTS)


def read_score(folder: Path) -> Score | None:
    """The score of a committed checkpoint; None where it has none yet, or one that is not of its weights."""
    path = folder / SCORE
    try:
        values = read_signed(path)
        if values["weights"] != committed_files(folder)[WEIGHTS]["sha256"]:
            raise CheckpointError(f"{path} is of other weights")
        return Score(float(values["miou"]), float(values["pixel_accuracy"]))
    except FileNotFoundError:
        return None
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        logger.warning("[event] the score of %s does not count (%s)", folder, error)
        return None


def list_committed(run_dir: Path) -> list[Path]:
    """Folders with a COMMIT, newest step first (unverified)."""
    folders = [path.parent for path in (run_dir / "checkpoints").glob(f"step_*/{COMMIT}")]
    return sorted(folders, key=lambda path: (step_of(path), path.name), reverse=True)


def step_of(folder: Path) -> int:
    """The optimizer step in a checkpoint folder's name."""
    return int(folder.name.removeprefix("step_").split("-")[0])


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The newest checkpoint that verifies; damaged ones are walked past with a warning.

    Raises WorldStateError where none is left and storage refused to read one, which says nothing of it.
    """
    whole, refused = _first_whole(list_committed(run_dir))
    if whole is None and refused is not None:
        raise WorldStateError(
            f"no checkpoint of {run_dir} can be read ({refused}); type the same again once it can, or rename "
            "its folder checkpoints to begin at step 0"
        ) from refused
    return whole


def best_checkpoint(run_dir: Path) -> Path | None:
    """The whole checkpoint whose own weights scored best in validation (a tie keeps the earlier one)."""
    return _first_whole(by_score(list_committed(run_dir)))[0]


def by_score(folders: list[Path]) -> list[Path]:
    """Those of the committed folders that have a score, the best first, of equal ones the earliest."""
    scored = [(folder, score) for folder in folders if (score := read_score(folder))]
    scored.sort(key=lambda pair: (-pair[1].miou, step_of(pair[0]), pair[0].name))
    return [folder for folder, _ in scored]


def committed_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Name → bytes and sha256 of each file, as COMMIT has it; raises CheckpointError."""
    try:
        commit = read_signed(folder / COMMIT)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {COMMIT}: its writing was never finished") from error
    if commit.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / COMMIT} has format {commit.get('format')!r}, this version reads {FORMAT!r}"
        )
    files = commit.get("files")
    if not isinstance(files, dict) or not all(_is_file(name, file) for name, file in files.items()):
        raise CheckpointError(f"{folder / COMMIT} is damaged: its files are {str(files)[:200]}")
    missing = [name for name in NEEDED if name not in files]
    if missing:
        raise CheckpointError(f"{folder / COMMIT} is damaged: it lacks {', '.join(missing)}")
    return files


def verify(folder: Path) -> None:
    """Raises CheckpointError unless every file on the disk is as COMMIT recorded it."""
    if not folder.is_dir():
        raise CheckpointError(f"no checkpoint at {folder}")
    for name, expected in committed_files(folder).items():
        path = folder / name
        try:
            if path.stat().st_size != expected["bytes"]:
                raise CheckpointError(f"{path} is {path.stat().st_size} bytes long, not {expected['bytes']}")
            if file_sha256(path) != expected["sha256"]:
                raise CheckpointError(f"{path} differs from what was committed (sha256)")
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read ({error.strerror})") from error


def _first_whole(folders: list[Path]) -> tuple[Path | None, CheckpointError | None]:
    """The first that verifies, and why one before it may be whole too, as far as anybody could see."""
    refused: CheckpointError | None = None
    for folder in folders:
        try:
            read_checkpoint(folder)
        except CheckpointError as error:
            logger.warning("[event] %s; going back to the checkpoint before it", error)
            if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
                refused = error
            continue
        return folder, refused
    return None, refused


def _is_file(name: str, file: object) -> bool:
    """Whether an entry of COMMIT names a file of its own folder, with size and digest."""
    plain = Path(name).name == name and name not in ("", "..", COMMIT, SCORE)
    return (
        plain
        and isinstance(file, dict)
        and type(file.get("bytes")) is int
        and type(file.get("sha256")) is str
    )


def _scored(card: ModelCard, score: Score | None) -> ModelCard:
    return card if score is None else replace(card, miou=score.miou)
