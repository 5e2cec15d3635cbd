"""Which checkpoints stay, and what is cleared away: the last few, the best one, and nothing half written."""

from __future__ import annotations

import logging
import shutil
from contextlib import suppress
from pathlib import Path

from pipeline.errors import WorldStateError
from pipeline.train.checkpoint import COMMIT, by_score, list_committed, newest_checkpoint
from pipeline.train.reduce import broadcast_object
from pipeline.world import World

logger = logging.getLogger(__name__)

_UNFINISHED = "unfinished-"


def superfluous(run_dir: Path, keep_last: int) -> list[Path]:
    """The committed checkpoints beside the last few and the best one, by what is on the disk."""
    committed = list_committed(run_dir)
    best = by_score(committed)[:1]
    return [folder for folder in committed[keep_last:] if folder not in best]


def remove(folder: Path) -> None:
    """Remove a checkpoint; it loses its COMMIT first, so that it is never half there. Raises OSError."""
    with suppress(FileNotFoundError):  # a later attempt was faster
        (folder / COMMIT).unlink()
        shutil.rmtree(folder)


def set_aside_newer(run_dir: Path, folder: Path | None) -> None:
    """Rename the damaged checkpoints that were walked past on the way to `folder`.

    They stay on the disk for a person to look at, and no longer count as kept. Raises OSError.
    """
    for newer in list_committed(run_dir):
        if newer == folder:
            return
        newer.rename(newer.with_name(f"damaged-{newer.name}"))


def remove_uncommitted(run_dir: Path) -> None:
    """Clear away what earlier attempts left half written; call before this attempt looks for the newest.

    A rank of an earlier attempt may still be at it. Its folder is renamed before anything in it is
    removed, so its COMMIT either comes before the rename, and counts, or finds no place any more. Raises
    OSError where one cannot be renamed.
    """
    folders = run_dir / "checkpoints"
    for moved in folders.glob(f"{_UNFINISHED}*"):  # by an attempt that was killed just here
        _decide(moved)
    for folder in folders.glob("step_*"):
        if not (folder / COMMIT).exists():
            _decide(folder.rename(folder.with_name(_UNFINISHED + folder.name)))


def _decide(moved: Path) -> None:
    if (moved / COMMIT).exists():  # committed in the very moment before the rename
        moved.rename(moved.with_name(moved.name.removeprefix(_UNFINISHED)))
        return
    try:
        shutil.rmtree(moved)
    except OSError as error:  # on NFS a file that somebody has open stays: it counts for nobody
        logger.warning(
            "[event] %s is left for the next attempt to remove: %s", moved, error.strerror or error
        )


def newest_for_all(run_dir: Path, world: World) -> Path | None:
    """The newest whole checkpoint, chosen by rank 0, which clears away what is not whole. A collective.

    Raises WorldStateError, on all ranks alike, where storage refuses.
    """
    folder: Path | None = None
    refusal: WorldStateError | None = None
    if world.is_main:
        try:
            remove_uncommitted(run_dir)
            folder = newest_checkpoint(run_dir)
            set_aside_newer(run_dir, folder)
        except WorldStateError as error:
            refusal = error
        except OSError as error:
            refusal = WorldStateError(
                f"cannot tidy {run_dir / 'checkpoints'}: {error.strerror or error} ({error.filename}); type "
                "the same again once that can be written"
            )
    folder, refusal = broadcast_object((folder, refusal), world)
    if refusal:
        raise refusal
    return folder
