"""`fit()`: the training loop, a straight line. Start reading here.

The same function runs under pytest, torchrun and Ray Train. Training ends by step count; every rank
does the same collectives the same number of times; all progress is in one `TrainState`, and what a
resumed run does is what the undisturbed one would have done.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.config import Config
from pipeline.errors import NonFiniteLossError, PipelineError
from pipeline.train import metrics
from pipeline.train.checkpoint import Score
from pipeline.train.context import RunContext
from pipeline.train.evaluate import EvaluationStopped, evaluate, scene_pictures
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
    Raises the errors of its parts, and NonFiniteLossError after too many skipped steps, or before weights
    that are not finite can be scored or saved.
    """
    with context.phase("start"):
        run = assemble(config, shards, run_dir, context)
        state, total = run.state, config.train.steps
        context.event("start", state.step, world_size=context.world.size, position=state.position)
        num_micro_batches = config.train.micro_batches_per_rank(context.world.size)
        profiler = StepProfiler(config.train.profile_steps, state.step, run_dir / "trace", context.world)
        late = LateNumbers(torch.zeros(2))
        stopping = False
    with closing(run.saver), closing(run.loader.batches(state.position)) as batches:
        if _evaluation_due(run):  # the one that an earlier attempt could not finish
            stopping = not _evaluate_and_keep(run, stall_s=None)
        while state.step < total and not stopping:
            with context.phase("data"):
                begin_s = time.perf_counter()
                micro_batches = [next(batches) for _ in range(num_micro_batches)]
                run.progress.waited(time.perf_counter() - begin_s)
            with context.phase("step"):
                on_device = [to_device(batch, run.device) for batch in micro_batches]
                wish_to_stop = context.stop_requested() or run.saver.failed
                agreement = run.runner.agree(on_device, wish_to_stop, run.quarantine.count)
                run.runner.step(on_device, agreement.denominators, state.step)
                state.advance(config.train.batch_global)
                run.skipped.watch(state, run.runner.gate.outcome, micro_batches)
                if run.ema:
                    run.ema.update(run.model, state.step, run.runner.gate.skipped)
                last = state.step == total
                # What was agreed a step before: by now it has arrived, so reading it waits for nothing.
                num_stopping, num_quarantined = (agreement.late if last else late).read()
                stopping, late = num_stopping > 0, agreement.late
                run.quarantine.refuse_above_limit(int(num_quarantined))
            profiler.step(context)
            evaluate_due = _evaluation_due(run)
            checkpoint_due = last or state.step % config.train.checkpoint_every == 0
            point_due = evaluate_due or checkpoint_due or state.step % config.train.metrics_every == 0
            _note_skipped(run, newest=point_due or stopping)
            if point_due or stopping:
                _record(run, shown=point_due)
            # Before the evaluation, which takes long and must not cost these steps if it is cut off.
            stall_s = _save(run) if checkpoint_due or stopping else None
            if evaluate_due and not stopping:  # else the next attempt begins with it
                stopping = not _evaluate_and_keep(run, stall_s)
        with context.phase("finish"):
            profiler.close()
            raise_together(run.saver.finish(), context.world)
    stopped = state.step < total or _evaluation_due(run)
    if stopped:
        context.event("stop", state.step)
    return FitResult(
        "preempted" if stopped else "ok", state.step, state.best_miou, state.best_pixel_accuracy,
        state.best_step, run.progress.samples_per_s(state), run.progress.wait_share(),
    )  # fmt: skip


def _note_skipped(run: Run, newest: bool) -> None:
    """Note updates that did not happen; above the bound save the weights, which are sound, and raise.

    What was skipped is known a step late; where the newest step must be known too, this waits for it.
    """
    run.skipped.note(run.state, newest)
    if run.skipped.too_many(run.state):
        run.skipped.note(run.state, newest=True)
        _record(run, shown=False)  # refuses weights that are not
        with run.context.phase("checkpoint"):
            save(run)
        raise run.skipped.error(run.state)


def _record(run: Run, shown: bool) -> None:
    """Write a point of the curves where it is to be shown; refuse to go on with weights that are not finite.

    A step at which a run happened to be stopped has no point: its curves are those of the undisturbed one.
    """
    window = run.progress.window(run.loader.usage())
    values = run.runner.summary(window.share) | window.values()
    if values.pop(metrics.BROKEN_RANKS) > 0:
        raise NonFiniteLossError(
            f"weights became NaN or infinite by step {run.state.step} "
            f"(loss {values[metrics.LOSS]:.3g}, gradient norm {values[metrics.GRADIENT_NORM]:.3g}) and are "
            "not saved; start another --name with a smaller --optim.lr than "
            f"{run.config.optim.lr:g}, or with --optim.clip_norm 1"
        )
    values[metrics.QUARANTINED] = run.quarantine.total
    values[metrics.SKIPPED] = run.state.skipped_steps
    values[metrics.SAMPLES_PER_S] = run.progress.samples_per_s(run.state)
    # A step that was skipped has no loss to draw; the event has it.
    if shown:
        run.context.metrics(run.state.step, {k: v for k, v in values.items() if math.isfinite(v)})
    run.progress.step_line(run.state, values, window.bottleneck)


def _evaluation_due(run: Run) -> bool:
    """True after the last step and after each so many, as long as the step was not evaluated.

    An end that was moved counts as one: an extended run, and the repeat of its config, evaluate alike.
    """
    state, train = run.state, run.config.train
    due = state.step in (*train.earlier_ends(), train.steps) or state.step % train.evaluate_every == 0
    return due and state.evaluated_step < state.step


def _save(run: Run, score: Score | None = None) -> float:
    """Save the state as it is; the seconds that training stood still."""
    with run.context.phase("checkpoint"):
        stall_s = save(run, score)
        run.progress.paused(stall_s)
    return stall_s


def _evaluate_and_keep(run: Run, stall_s: float | None) -> bool:
    """Score the weights as they are; the score goes to their checkpoint, which the best so far always get.

    False where a stop was asked for meanwhile: an evaluation may take longer than whoever asked waits.
    Weights that were not scored then, or cannot be, as a picture is damaged or a store is out of reach, are
    kept too: the next attempt begins with their evaluation. `stall_s` is what saving them cost, where they
    were saved.
    """
    begin_s, step = time.perf_counter(), run.state.step
    try:
        with run.context.phase("evaluate"):
            result = _evaluate(run)
            improved = run.state.note_score(result.miou, result.pixel_accuracy)
    except (PipelineError, EvaluationStopped) as error:  # raised by all ranks alike
        run.progress.paused(time.perf_counter() - begin_s)
        if not run.saver.holds(step):
            _save(run)
        if isinstance(error, EvaluationStopped):
            return False
        raise
    run.progress.paused(time.perf_counter() - begin_s)
    score = Score(result.miou, result.pixel_accuracy)
    if run.saver.holds(step):
        run.saver.note_score(score)
    elif improved:
        stall_s = _save(run, score)
    run.progress.val_line(run.state, result, run.validation.classes.names, stall_s)
    return True


def _evaluate(run: Run) -> Scores:
    """Evaluate on all ranks and record scores, per-class table, confusion matrix and pictures."""
    context, step, classes = run.context, run.state.step, run.validation.classes
    model, data = run.evaluated_model, run.config.data
    size = data.input_height, data.input_width
    broadcast_buffers(model, context.world)
    confusion_KK, result = evaluate(
        model, run.validation, size, context.world, batch_size=run.config.train.eval_batch_per_rank,
        loader_workers=data.loader_workers, stop_requested=context.stop_requested,
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
