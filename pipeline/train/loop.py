"""`fit()`: the training loop, a straight line. Start reading here.

The same function runs under pytest, torchrun and Ray Train. Training ends by step count; every rank
does the same collectives the same number of times; all progress is in one `TrainState`, and what a
resumed run does is what the undisturbed one would have done.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.config import Config
from pipeline.errors import NonFiniteLossError, PipelineError
from pipeline.train import metrics
from pipeline.train.context import RunContext
from pipeline.train.evaluate import evaluate, scene_pictures
from pipeline.train.metrics import Scores
from pipeline.train.profile import StepProfiler
from pipeline.train.reduce import broadcast_buffers, raise_together
from pipeline.train.run import Run, assemble, save
from pipeline.train.step import LateNumbers, to_device


@dataclass(frozen=True)
class FitResult:
    """How an attempt ended; plain values."""

    status: str
    """`ok`, or `preempted`: stopped on request after a checkpoint."""
    step: int
    """Optimizer steps done."""
    miou: float | None
    """Best validation mIoU."""
    pixel_accuracy: float | None
    """Pixel accuracy of the same evaluation."""
    best_step: int | None
    """Step of the same evaluation."""
    samples_per_s: float
    """Training speed of this attempt over all ranks."""
    data_wait_share: float
    """Share of this attempt's training time that rank 0 waited for data."""


def fit(config: Config, shards: str, run_dir: Path, context: RunContext) -> FitResult:
    """Train until `config.train.steps`, going on from the newest checkpoint of `run_dir`.

    With several ranks the default process group must be there; all ranks see the same `run_dir`.
    Raises the errors of its parts, and NonFiniteLossError before a broken state can be saved.
    """
    with context.phase("start"):
        run = assemble(config, shards, run_dir, context)
        state, total = run.state, config.train.steps
        context.event("start", state.step, world_size=context.world.size, position=state.position)
        profiler = StepProfiler(config.train.profile_steps, state.step, run_dir / "trace", context.world)
        late = LateNumbers(torch.zeros(2))
        stopping = False
    if _evaluation_due(run):  # the one that an earlier attempt could not finish
        _evaluate_and_save(run, save_due=True)
    with closing(run.loader.batches(state.position)) as batches:
        while state.step < total and not stopping:
            with context.phase("data"):
                begin_s = time.perf_counter()
                micro_batches = [next(batches) for _ in range(config.train.accumulation)]
                run.progress.waited(time.perf_counter() - begin_s)
            with context.phase("step"):
                on_device = [to_device(batch, run.device) for batch in micro_batches]
                agreement = run.runner.agree(on_device, context.stop_requested(), run.quarantine.count)
                run.runner.step(on_device, agreement.denominators, state.step)
                state.advance(config.train.batch_global)
                if run.ema:
                    run.ema.update(run.model, state.step)
                profiler.step()
                last = state.step == total
                # What was agreed a step before: by now it has arrived, so reading it waits for nothing.
                num_stopping, num_quarantined = (agreement.late if last else late).read()
                stopping, late = num_stopping > 0, agreement.late
                run.quarantine.refuse_above_limit(num_quarantined)
            evaluate_due = _evaluation_due(run)
            save_due = last or stopping or state.step % config.train.checkpoint_every == 0
            if evaluate_due or save_due or state.step % config.train.metrics_every == 0:
                _record(run)
            if evaluate_due:
                _evaluate_and_save(run, save_due)
            elif save_due:
                with context.phase("checkpoint"):
                    run.progress.paused(save(run, miou=None))
    with context.phase("finish"):
        profiler.close()
    stopped = state.step < total
    if stopped:
        context.event("stop", state.step)
    return FitResult(
        "preempted" if stopped else "ok", state.step, state.best_miou, state.best_pixel_accuracy,
        state.best_step, run.progress.samples_per_s(state), run.progress.wait_share(),
    )  # fmt: skip


def _record(run: Run) -> None:
    """Write a point of the curves; refuse to go on once the loss or a gradient was not finite."""
    window = run.progress.window(run.loader.usage())
    values = run.runner.summary(window.share) | window.values()
    if values.pop(metrics.NON_FINITE) > 0:
        raise NonFiniteLossError(
            f"the loss or a gradient became NaN or infinite by step {run.state.step} "
            f"(loss {values[metrics.LOSS]:.3g}, gradient norm {values[metrics.GRADIENT_NORM]:.3g}); "
            f"try a smaller --optim.lr than {run.config.optim.lr:g}, or --optim.clip_norm 1"
        )
    values[metrics.QUARANTINED] = run.quarantine.total
    values[metrics.SAMPLES_PER_S] = run.progress.samples_per_s(run.state)
    run.context.metrics(run.state.step, values)
    run.progress.step_line(run.state, values, window.bottleneck)


def _evaluation_due(run: Run) -> bool:
    """True after the last step and after each so many, as long as the step was not evaluated.

    An end that was moved counts as one: an extended run, and the repeat of its config, evaluate alike.
    """
    state, train = run.state, run.config.train
    due = state.step in (*train.earlier_ends(), train.steps) or state.step % train.evaluate_every == 0
    return due and state.evaluated_step < state.step


def _evaluate_and_save(run: Run, save_due: bool) -> None:
    """Score the weights as they are; keep them where they are the best so far, or a save is due.

    Weights that cannot be scored, as a picture is damaged or a store is out of reach, are kept too: the
    next attempt begins with their evaluation.
    """
    begin_s = time.perf_counter()
    try:
        with run.context.phase("evaluate"):
            result = _evaluate(run)
            improved = run.state.note_score(result.miou, result.pixel_accuracy)
    except PipelineError:  # raised by all ranks alike
        with run.context.phase("checkpoint"):
            save(run, miou=None)
        raise
    stall_s = None
    if improved or save_due:
        with run.context.phase("checkpoint"):
            stall_s = save(run, result.miou)
            run.context.metrics(run.state.step, {metrics.CHECKPOINT_STALL_S: stall_s})
    run.progress.val_line(run.state, result, run.validation.classes.names, stall_s)
    run.progress.paused(time.perf_counter() - begin_s)


def _evaluate(run: Run) -> Scores:
    """Evaluate on all ranks and record scores, per-class table, confusion matrix and pictures."""
    context, step, classes = run.context, run.state.step, run.validation.classes
    model, data = run.evaluated_model, run.config.data
    size = data.input_height, data.input_width
    broadcast_buffers(model, context.world)
    confusion_KK, result = evaluate(
        model, run.validation, size, context.world, run.device,
        batch_size=run.config.train.eval_batch_per_rank, loader_workers=data.loader_workers,
    )  # fmt: skip
    scored = {name: iou for name, iou in zip(classes.names, result.iou, strict=True) if iou is not None}
    values = {metrics.VAL_MIOU: result.miou, metrics.VAL_PIXEL_ACCURACY: result.pixel_accuracy}
    context.metrics(step, values | {metrics.VAL_IOU.format(name): iou for name, iou in scored.items()})
    pixels_K = confusion_KK.sum(1).tolist()
    rows = [[name, iou, n] for name, iou, n in zip(classes.names, result.iou, pixels_K, strict=True)]
    context.table(metrics.IOU_TABLE, step, ["class", "iou", "labelled_pixels"], rows)
    columns = ["label", *classes.names]
    rows = [[name, *row] for name, row in zip(classes.names, confusion_KK.tolist(), strict=True)]
    context.table(metrics.CONFUSION_TABLE, step, columns, rows)
    _record_pictures(run)
    return result


def _record_pictures(run: Run) -> None:
    """Record a few scenes with their prediction. A collective.

    Rank 0 draws them all, from parts of other ranks too: where it cannot read one, all ranks raise that.
    """
    context, data = run.context, run.config.data
    size = data.input_height, data.input_width
    problem: PipelineError | None = None
    if context.world.is_main:
        try:
            pictures = scene_pictures(
                run.evaluated_model, run.validation, run.config.train.pictures, size, run.device
            )
            for index, picture_HW3 in enumerate(pictures):
                context.picture(metrics.PICTURE.format(index), run.state.step, picture_HW3)
        except PipelineError as error:
            problem = error
    raise_together(problem, context.world)
