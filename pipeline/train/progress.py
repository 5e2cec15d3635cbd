"""What a person reads while training: one line an interval, written by rank 0."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from pipeline.config import Config
from pipeline.config.model_names import model_name
from pipeline.data.dataset import ShardDataset
from pipeline.data.loader import LoaderUsage
from pipeline.duration import duration
from pipeline.train import metrics
from pipeline.train.data_wait import NOTICEABLE_SHARE, DataWait, WaitWindow
from pipeline.train.metrics import Scores
from pipeline.train.state import TrainState
from pipeline.world import World

logger = logging.getLogger(__name__)


class Progress:
    """Counts samples and waits, and says how it goes. The clock is time.perf_counter."""

    def __init__(self, config: Config, world: World, state: TrainState) -> None:
        self._config, self._world = config, world
        self._start_s = self._logged_s = time.perf_counter()
        self._start_step = self._logged_step = state.step
        self._idle_s = self._logged_idle_s = 0.0
        self._wait_s = 0.0
        self._data_wait = DataWait(LoaderUsage())

    def header(
        self, run: str, dataset: ShardDataset, num_parameters: int, tracking: str, device: str
    ) -> None:
        """The first line of an attempt."""
        if not self._world.is_main:
            return
        resumed = f"step {self._start_step}" if self._start_step else "no"
        part = f" {dataset.part}" if dataset.part else ""
        data = f"{dataset.manifest.id[:4]}…({len(dataset)}{part})"
        if self._config.data.unindexed_train:
            data = "unindexed"
        logger.info(
            "[train] run=%s data=%s model=%s %.1fM workers=%d %s seed=%d resumed=%s mlflow=%s",
            run, data, model_name(self._config.model), num_parameters / 1e6, self._world.size, device,
            self._config.train.seed, resumed, tracking or "off",
        )  # fmt: skip
        if self._start_step >= self._config.train.steps:
            logger.info(
                "[event] run=%s has done all of its %d steps: nothing to train", run, self._start_step
            )

    def waited(self, seconds: float) -> None:
        """Note time spent on waiting for data."""
        self._wait_s += seconds
        self._data_wait.waited(seconds)

    def paused(self, seconds: float) -> None:
        """Note time spent on evaluation and checkpoints: it is no training time."""
        self._idle_s += seconds
        self._data_wait.paused(seconds)

    def window(self, usage: LoaderUsage) -> WaitWindow:
        """The time since the last call, up to the loader's usage now; evaluation and checkpoints left out."""
        return self._data_wait.window(usage)

    def samples_per_s(self, state: TrainState) -> float:
        """Training speed of this attempt over all ranks, evaluation and checkpoints left out."""
        training_s = time.perf_counter() - self._start_s - self._idle_s
        return (state.step - self._start_step) * self._config.train.batch_global / max(training_s, 1e-9)

    def wait_share(self) -> float:
        """Share of this attempt's training time spent on waiting for data, on this rank."""
        return min(self._wait_s / max(time.perf_counter() - self._start_s - self._idle_s, 1e-9), 1.0)

    def step_line(self, state: TrainState, values: Mapping[str, float], bottleneck: str) -> None:
        """One line on how it goes, at most one an interval; names the bottleneck of waits that matter."""
        now = time.perf_counter()
        total = self._config.train.steps
        due = now - self._logged_s >= self._config.train.log_every_s or state.step == total
        if not (self._world.is_main and due):
            return
        busy_s = max(now - self._logged_s - (self._idle_s - self._logged_idle_s), 1e-9)
        rate = (state.step - self._logged_step) * self._config.train.batch_global / busy_s
        wait_share = values[metrics.DATA_WAIT_SHARE]
        left_s = (total - state.step) * self._config.train.batch_global / max(rate, 1e-9)
        logger.info(
            "[train] step %d/%d %d%%  loss %.3f (%s)  lr %.1e  %.3g img/s  data-wait %d%%%s  eta %s",
            state.step, total, 100 * state.step // total, values[metrics.LOSS], self._terms(values),
            values[metrics.LEARNING_RATE], rate, round(100 * wait_share),
            f" ({bottleneck})" if wait_share > NOTICEABLE_SHARE else "", duration(left_s),
        )  # fmt: skip
        self._logged_s, self._logged_step, self._logged_idle_s = now, state.step, self._idle_s

    def _terms(self, values: Mapping[str, float]) -> str:
        head = self._config.model.head
        shown = [("ce", metrics.LOSS_CE), ("coarse", metrics.LOSS_COARSE)]
        if head.lambda_balanced > 0:
            shown.append(("balanced", metrics.LOSS_BALANCED))
        if head.kind == "ccs":
            shown += [("inter", metrics.LOSS_INTER), ("intra", metrics.LOSS_INTRA)]
        return " ".join(f"{word} {values[name]:.2f}" for word, name in shown)

    def val_line(
        self, state: TrainState, result: Scores, names: tuple[str, ...], stall_s: float | None
    ) -> None:
        """One line on an evaluation and, where one was written, its checkpoint."""
        if not self._world.is_main:
            return
        scored = [(iou, name) for iou, name in zip(result.iou, names, strict=True) if iou is not None]
        best = f"{state.best_miou:.3f}{'*' if state.best_step == state.step else ''}"
        shown = " ".join(f"{name} {_short(iou)}" for iou, name in sorted(scored, reverse=True)[:3])
        worst = " ".join(f"{name} {_short(iou)}" for iou, name in sorted(scored)[:2])
        checkpoint = "" if stall_s is None else f"  ckpt step_{state.step} stall {stall_s:.2f}s"
        logger.info(
            "[val]   step %d  mIoU %.3f (best %s)  %s … worst: %s%s",
            state.step, result.miou, best, shown, worst, checkpoint,
        )  # fmt: skip


def _short(share: float) -> str:
    return f"{share:.2f}".removeprefix("0")
