"""The parts of a run on one rank, put together from a config, and how they are saved and restored."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline.config import Config, require
from pipeline.data.dataset import ShardDataset, open_splits
from pipeline.data.loader import TrainLoader
from pipeline.data.plan import StepParts
from pipeline.data.quarantine import Quarantine, listed, quarantine_limit
from pipeline.data.unindexed import UnindexedLoader
from pipeline.errors import CheckpointError, one_line
from pipeline.heap import keep_freed_memory
from pipeline.model.segmenter import Segmenter, build_segmenter, channels_last
from pipeline.settings import config_hash, to_dict
from pipeline.train import checkpoint, determinism
from pipeline.train.batch_norm import synchronize_batch_norm
from pipeline.train.checkpoint import Score
from pipeline.train.checkpoint_folder import Content
from pipeline.train.compile import compile_network
from pipeline.train.context import RunContext
from pipeline.train.model_card import ModelCard
from pipeline.train.optim import Ema, build_optimizer, optimizer_tensors, restore_optimizer
from pipeline.train.pretrained import start_from_weights
from pipeline.train.progress import Progress
from pipeline.train.retention import newest_for_all
from pipeline.train.saver import Saver
from pipeline.train.shard_batch_norm import take_shard_statistics
from pipeline.train.skipped import SkippedSteps
from pipeline.train.state import TrainState
from pipeline.train.step import StepRunner
from pipeline.world import World


@dataclass
class Run:
    """One rank's share of a run, after `assemble`."""

    config: Config
    run_dir: Path
    context: RunContext
    device: torch.device
    model: Segmenter
    ema: Ema | None
    optimizer: torch.optim.Optimizer
    runner: StepRunner
    loader: TrainLoader | UnindexedLoader
    quarantine: Quarantine
    validation: ShardDataset
    state: TrainState
    progress: Progress
    saver: Saver
    skipped: SkippedSteps

    @property
    def evaluated_model(self) -> Segmenter:
        """What is scored and registered: the averaged weights where EMA is on."""
        return self.ema.averaged if self.ema else self.model


def pick_device(use_gpu: str, world: World) -> torch.device:
    """The GPU of this rank among the visible ones, or the CPU.

    Raises ConfigError where GPUs were asked for and torch has none, or has fewer than ranks: NCCL
    refuses two ranks on one GPU. A single visible one is the rank's own, chosen by who launched it.
    """
    if use_gpu == "no" or (use_gpu == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    num_gpus = torch.cuda.device_count()
    require(num_gpus > 0, "launch.use_gpu is yes, but torch sees no GPU here; try --launch.use_gpu no")
    require(
        num_gpus == 1 or world.local_rank < num_gpus,
        f"{world.local_size} ranks on a machine with {num_gpus} GPUs; start at most one a GPU",
    )
    return torch.device("cuda", world.local_rank if num_gpus > 1 else 0)


def assemble(config: Config, shards: str, run_dir: Path, context: RunContext) -> Run:
    """Build everything and restore the newest checkpoint of `run_dir`. A collective."""
    keep_freed_memory()  # activations on the CPU above all
    world = context.world
    device = pick_device(config.launch.use_gpu, world)
    determinism.settle_kernels(config.train, config.launch.threads_per_worker)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    training, validation = open_splits(shards, config.data)
    limit = quarantine_limit(config.data, len(training))
    quarantine = Quarantine(run_dir, limit, counts_earlier=world.is_main)
    loader = _build_loader(config, training, quarantine, world, device)
    model = _build_model(config, training.classes.num_classes, world, device)
    ema = None
    if config.train.ema_decay:
        averaged = _build_model(config, training.classes.num_classes, world, device)
        ema = Ema(model, averaged, config.train.ema_decay)
    optimizer = build_optimizer(config.optim, model)
    folder = newest_for_all(run_dir, world)
    state = _restore(config, folder, world, model, ema, optimizer, loader)
    skipped = SkippedSteps(config, context)
    if skipped.too_many(state):  # and run again as it was
        raise skipped.error(state)
    if config.train.compile:
        compile_network(model, config, world, device)
    reduction = determinism.build_reduction(model, config.train, world, device)
    runner = StepRunner(
        model, optimizer, reduction,
        class_names=training.classes.names, config=config, world=world, device=device,
    )  # fmt: skip
    progress = Progress(config, world, state)
    num_parameters = sum(p.numel() for p in model.parameters())
    progress.header(run_dir.name, training, num_parameters, context.tracking, device.type)
    return Run(
        config, run_dir, context, device, model, ema, optimizer, runner, loader, quarantine, validation,
        state, progress, Saver(run_dir, context, config.train.keep_last, folder), skipped,
    )  # fmt: skip


def _build_loader(
    config: Config, training: ShardDataset, quarantine: Quarantine, world: World, device: torch.device
) -> TrainLoader | UnindexedLoader:
    batch_per_rank = config.train.micro_batch_per_rank(world.size)
    elastic = config.train.determinism == "elastic"
    parts = StepParts(config.train.micro_batches_per_rank(world.size), virtual_shards=elastic)
    on_device = config.data.colour == "device" or (config.data.colour == "auto" and device.type == "cuda")
    data = replace(config.data, colour="device" if on_device else "loader")
    if config.data.unindexed_train:
        return UnindexedLoader(
            training.classes.num_classes, data, config.train.seed, world, batch_per_rank,
            quarantine=quarantine,
        )  # fmt: skip
    return TrainLoader(
        training, data, config.train.seed, world, batch_per_rank,
        parts=parts, quarantine=quarantine,
    )  # fmt: skip


def _build_model(config: Config, num_classes: int, world: World, device: torch.device) -> Segmenter:
    torch.manual_seed(config.train.seed)
    model = build_segmenter(config.model, num_classes)
    mode = config.train.determinism
    if mode == "elastic":
        take_shard_statistics(model)
    elif config.train.sync_batch_norm and world.size > 1:
        synchronize_batch_norm(model, device, fixed_order=mode == "exact")
    channels_last(model)
    return model.to(device)


def _restore(
    config: Config, folder: Path | None, world: World, model: Segmenter, ema: Ema | None,
    optimizer: torch.optim.Optimizer, loader: TrainLoader | UnindexedLoader,
) -> TrainState:  # fmt: skip
    """Fill model, EMA and optimizer from a checkpoint; the progress that it stands for.

    A run that has none yet starts from the published weights, where it names some.
    """
    if folder is None:
        start_from_weights(model, config, world)
        if ema:
            ema.averaged.load_state_dict(model.state_dict())
        return TrainState()
    found = checkpoint.read_checkpoint(folder)
    recorded = found.state
    TrainLoader.refuse_other_order(recorded["order"], loader.order())
    here = determinism.surroundings(config, world, model.mean_3.device)
    determinism.refuse_other_surroundings(recorded["surroundings"], here)
    try:
        model.load_state_dict(checkpoint.read_tensors(folder, checkpoint.WEIGHTS))
        if ema:
            ema.averaged.load_state_dict(checkpoint.read_tensors(folder, checkpoint.AVERAGED))
    except RuntimeError as error:
        raise CheckpointError(
            f"{folder} holds another model than the config asks for; take another --name, "
            f"or the settings of that run ({one_line(error, 200)})"
        ) from error
    restore_optimizer(model, optimizer, checkpoint.read_tensors(folder, checkpoint.OPTIMIZER))
    state = TrainState(**recorded["progress"])
    if found.score and state.evaluated_step < state.step:  # attached after the state was written
        state.note_score(found.score.miou, found.score.pixel_accuracy)
    return state


def save(run: Run, score: Score | None = None) -> float:
    """Save the state as it is, and return the seconds that training stood still.

    `score` is the validation score of exactly these weights, where it is known. Rank 0 writes, behind
    training's back; the others go on.
    """
    return run.saver.save(_tensors(run), Content({}, _card(run), _state(run), score))


def _tensors(run: Run) -> dict[str, dict[str, Tensor]]:
    tensors = {
        checkpoint.WEIGHTS: run.model.state_dict(),
        checkpoint.OPTIMIZER: optimizer_tensors(run.model, run.optimizer),
    }
    if run.ema:
        tensors[checkpoint.AVERAGED] = run.ema.averaged.state_dict()
    return tensors


def _card(run: Run) -> ModelCard:
    return ModelCard(
        model=run.config.model,
        classes=run.validation.classes,
        input_height=run.config.data.input_height,
        input_width=run.config.data.input_width,
        manifest_id=run.validation.manifest.id,
        step=run.state.step,
        miou=None,  # lies beside it: the weights are saved before they are evaluated
    )


def _state(run: Run) -> dict[str, object]:
    """All that a resume needs, or a person may ask, beside the tensors and the card (which names the data).

    Not here, as it follows from this: learning rate and epoch are functions of step and position; order,
    augmentation and dropout draw from (seed, position), so there is no generator; bfloat16 takes no
    loss scaler; what the journal has that counts follows from the step (tracking/journal.py); MLflow's
    run is found by the run's name.
    """
    return {
        "progress": asdict(run.state),
        "order": run.loader.order(),
        "config": to_dict(run.config),
        "config_hash": config_hash(run.config),
        "world_size": run.context.world.size,
        "surroundings": determinism.surroundings(run.config, run.context.world, run.device),
        "attempt": run.context.attempt,
        "quarantined": listed(run.run_dir),
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__,
            "opencv": cv2.__version__, "safetensors": version("safetensors"),
        },
    }  # fmt: skip
