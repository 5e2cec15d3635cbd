"""What can be known to be wrong before a worker takes a CPU: paths, shards, space, sizes.

Every check raises one of the project's errors. They are cheap: an hour in a queue must not end
with a misspelt folder.
"""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import Config, StoreConfig
from pipeline.data.dataset import open_splits
from pipeline.data.store import open_store
from pipeline.data.store.address import is_address, parse_address
from pipeline.data.unindexed_stream import shards_of
from pipeline.errors import ConfigError, ShardError, WorldStateError, without_credentials
from pipeline.model.segmenter import outline_segmenter
from pipeline.train.checkpoint import list_committed
from pipeline.train.pretrained import check_weights

FLOAT_BYTES = 4
RECORDS_BYTES = 64 << 20
"""Room for journal, pictures, database and report beside the weights."""


@dataclass(frozen=True)
class Checked:
    """What the checks learned."""

    manifest_id: str
    training: str
    """What it trains on, for a person."""
    parameters: int
    bytes_needed: int


def check_run(config: Config, shards: str, run_dir: Path) -> Checked:
    """Facts about a run that can start; raises a PipelineError for the first thing that forbids it."""
    train, val = open_splits(shards, config.data)
    for dataset in (train, val):
        dataset.preflight()
    check_decoded_cache(config.data.decoded_cache)
    parameters = count_parameters(config, train.classes.num_classes)
    if not list_committed(run_dir):  # else its checkpoint has the weights
        check_weights(config.model.backbone)
    needed = bytes_needed(config, parameters)
    check_space(run_dir, max(needed - bytes_written(run_dir), RECORDS_BYTES))
    unindexed = config.data.unindexed_train
    training = (
        f"{check_unindexed(unindexed, config.data.store)} unindexed shards"
        if unindexed
        else f"{len(train)} samples"
    )
    if val.part:
        training += f", {len(val)} held out"
    return Checked(train.manifest.id, training, parameters, needed)


def check_unindexed(pattern: str, config: StoreConfig) -> int:
    """The number of shards that a pattern names; raises ShardError where its first or last is not there."""
    root, names = shards_of(pattern)
    with closing(open_store(root, config)) as store:
        for name in dict.fromkeys((names[0], names[-1])):
            if not store.exists(name):
                raise ShardError(
                    f"--data.unindexed_train {pattern}: {root}/{name} is not there; type a range of the "
                    f"shards that {root} has"
                )
    return len(names)


def count_parameters(config: Config, num_classes: int) -> int:
    """Parameters and buffers of the model; made without memory for them."""
    model = outline_segmenter(config.model, num_classes)
    return sum(tensor.numel() for tensor in model.state_dict().values())


def bytes_needed(config: Config, parameters: int) -> int:
    """Bytes a run writes: kept checkpoints, the one in the making, and the model three times over.

    The model is exported, copied into the run's artifacts and into the registry.
    """
    moments = 2 if config.optim.name == "adamw" else 1
    averaged = 1 if config.train.ema_decay else 0
    checkpoints = config.train.keep_last + 2  # the best one, and one being written
    copies = checkpoints * (1 + moments + averaged) + 3
    return copies * parameters * FLOAT_BYTES + RECORDS_BYTES


def bytes_written(run_dir: Path) -> int:
    """Bytes that the run's checkpoints and exported model take already, which a resumed run replaces."""
    folders = (run_dir / "checkpoints", run_dir / "export")
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def check_space(run_dir: Path, needed_bytes: int) -> None:
    """Raises WorldStateError where the run's folder cannot be written or has too little room."""
    existing = run_dir
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise WorldStateError(
            f"--runs: cannot write to {existing}; choose another, such as --runs ~/ccs-runs"
        )
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise WorldStateError(
            f"no space in --runs: {existing} has {free_bytes} bytes free, and this run needs {needed_bytes} "
            "bytes; free some, or choose another --runs"
        )


def check_decoded_cache(folder: str) -> None:
    """Raises ConfigError where a file or a broken link is in place of the cache's folder; "" is no cache."""
    if not folder:
        return
    existing = next(p for p in (Path(folder), *Path(folder).absolute().parents) if os.path.lexists(p))
    if not existing.is_dir():
        what = "a link to no folder" if existing.is_symlink() else "a file"
        raise ConfigError(
            f"--data.decoded_cache {folder}: {existing} is {what}; type a folder, or leave it out"
        )


def check_model_name(name: str) -> None:
    """Raises ConfigError for a name that MLflow would refuse after the training; "" registers nothing."""
    if name and (not name.strip() or name.startswith(".") or {"/", ":"} & set(name)):
        raise ConfigError(
            f"--register {name!r}: the name of a registered model has no / and no :, begins with no dot "
            'and is not blank; "" registers none'
        )


def check_addresses(shards: str, runs: str, unindexed: str = "") -> None:
    """Raises ConfigError for shards at an address that may not be opened, and for runs that cannot be."""
    for address in filter(is_address, (shards, unindexed)):
        parse_address(address)
    if is_address(runs) and parse_address(runs, "runs").scheme != "s3":
        raise ConfigError(
            f"--runs {without_credentials(runs)}: runs are kept in a folder or at s3://BUCKET/PATH; type one "
            "of them"
        )
