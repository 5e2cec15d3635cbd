"""Settings of the optimizer and of the loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from pipeline.config.check import require


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and schedule."""

    name: Literal["sgd", "adamw"] = "sgd"
    """`sgd` (momentum) or `adamw`."""
    lr: float = 0.01
    """Peak learning rate, for the global batch."""
    momentum: float = 0.9
    """Momentum of sgd; adamw uses it as its first beta."""
    weight_decay: float = 5e-4
    """Weight decay; norms and biases are left out."""
    head_lr_multiplier: float = 1.0
    """Learning rate of the head relative to the backbone."""
    warmup_steps: int = 0
    """Steps of linear warm-up from a hundredth of the rate."""
    poly_power: float = 0.9
    """Power of the polynomial decay."""
    min_lr: float = 1e-4
    """Where the decay ends."""
    clip_norm: float = 0.0
    """Clip the global gradient norm to this; 0 turns it off."""

    def __post_init__(self) -> None:
        require(0.0 < self.lr < 100.0, f"optim.lr must be above 0, got {self.lr}")
        require(
            0.0 <= self.min_lr <= self.lr, f"optim.min_lr must be in [0, lr={self.lr}], got {self.min_lr}"
        )
        require(0.0 <= self.momentum < 1.0, f"optim.momentum must be in [0, 1), got {self.momentum}")
        require(self.weight_decay >= 0.0, f"optim.weight_decay must be at least 0, got {self.weight_decay}")
        require(
            self.head_lr_multiplier > 0.0,
            f"optim.head_lr_multiplier must be above 0, got {self.head_lr_multiplier}",
        )
        require(self.warmup_steps >= 0, f"optim.warmup_steps must be at least 0, got {self.warmup_steps}")
        require(self.poly_power > 0.0, f"optim.poly_power must be above 0, got {self.poly_power}")
        require(self.clip_norm >= 0.0, f"optim.clip_norm must be at least 0, got {self.clip_norm}")


@dataclass(frozen=True)
class TrainConfig:
    """How long, how large, how often."""

    steps: int = 600
    """Optimizer steps; training ends by this count alone."""
    extended_at: str = ""
    """Steps at which the run was to end before `--extend` made it longer, such as 20 or 20+40; written by
    that. Up to each the learning rate is that of a run of so many steps, after the last that of one of
    train.steps: it jumps up there."""
    batch_global: int = 16
    """Samples an optimizer step, over all ranks and accumulated micro-batches."""
    accumulation: int = 1
    """Micro-batches an optimizer step on each rank."""
    determinism: Literal["off", "exact", "elastic"] = "off"
    """`exact`: a stopped and resumed run is bit for bit the undisturbed one, with as many ranks as before;
    `elastic`: with any number of ranks that divides `virtual_shards`, which may change at a resume."""
    virtual_shards: int = 8
    """Equal parts of the global batch, each a micro-batch with BatchNorm statistics of its own, that
    `elastic` deals to the ranks: the most ranks it can have. They take the place of `accumulation`."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the autocast; `auto` takes bfloat16 where the hardware multiplies it."""
    compile: bool = False
    """Compile the network by torch.compile; where that is not possible, say so and go on without."""
    sync_batch_norm: bool = False
    """Take BatchNorm's statistics over all ranks."""
    ema_decay: float = 0.0
    """Decay of the averaged weights that are evaluated and registered; 0 turns them off."""
    seed: int = 0
    """Seed of weights, order, augmentation and dropout."""
    log_every_s: float = 5.0
    """Seconds between two log lines."""
    metrics_every: int = 10
    """Steps between two points of the training curves."""
    evaluate_every: int = 200
    """Steps between two evaluations; the last step is always evaluated."""
    checkpoint_every: int = 200
    """Steps between two checkpoints; the last step always writes one."""
    keep_last: int = 2
    """Checkpoints kept beside the best one."""
    eval_batch_per_rank: int = 4
    """Pictures a rank sends through the network at once while evaluating."""
    pictures: int = 4
    """Validation scenes whose prediction is recorded at each evaluation."""
    profile_steps: int = 0
    """Steps traced by torch's profiler, after ten steps; 0 turns it off."""
    max_skipped_steps: int = 10
    """Steps of the whole run that may be skipped, as their update is not finite; one more ends the run."""

    def __post_init__(self) -> None:
        for name in (
            "steps", "batch_global", "accumulation", "virtual_shards", "metrics_every", "evaluate_every",
            "checkpoint_every", "keep_last", "eval_batch_per_rank",
        ):  # fmt: skip
            value = getattr(self, name)
            require(value >= 1, f"train.{name} must be at least 1, got {value}")
        for name in ("pictures", "profile_steps", "seed", "max_skipped_steps"):
            value = getattr(self, name)
            require(value >= 0, f"train.{name} must be at least 0, got {value}")
        require(
            self.profile_steps == 0 or self.profile_steps + 10 <= self.steps,
            f"train.profile_steps {self.profile_steps} come after ten steps, train.steps is {self.steps}; "
            f"try --train.steps {self.profile_steps + 10}",
        )
        if self.determinism == "elastic":
            self._check_elastic()
        require(0.0 <= self.ema_decay < 1.0, f"train.ema_decay must be in [0, 1), got {self.ema_decay}")
        require(self.log_every_s >= 0.0, f"train.log_every_s must be at least 0, got {self.log_every_s}")
        self._check_extensions()

    def _check_elastic(self) -> None:
        require(
            self.batch_global % self.virtual_shards == 0,
            f"train.batch_global {self.batch_global} does not divide by {self.virtual_shards} virtual "
            f"shards; try --train.virtual_shards {math.gcd(self.batch_global, self.virtual_shards)}",
        )
        require(
            not self.sync_batch_norm,
            "train.determinism elastic has BatchNorm statistics of each virtual shard, "
            "train.sync_batch_norm of all ranks; try --train.sync_batch_norm false",
        )

    def micro_batches_per_rank(self, world_size: int) -> int:
        """Micro-batches a rank takes in an optimizer step; raises ConfigError where that is not whole."""
        if self.determinism != "elastic":
            return self.accumulation
        divisors = [size for size in range(1, self.virtual_shards + 1) if self.virtual_shards % size == 0]
        require(
            world_size in divisors,
            f"train.virtual_shards {self.virtual_shards} do not divide by {world_size} workers; take "
            f"{', '.join(map(str, divisors))} of them",
        )
        return self.virtual_shards // world_size

    def _check_extensions(self) -> None:
        numbers = all(part.isdecimal() for part in self.extended_at.split("+")) or not self.extended_at
        require(
            numbers and all(a < b for a, b in pairwise((0, *self.earlier_ends(), self.steps))),
            f"train.extended_at takes rising numbers of steps below train.steps {self.steps}, joined by +, "
            f"got {self.extended_at!r}",
        )

    def earlier_ends(self) -> tuple[int, ...]:
        """Numbers of steps that the run was to have before it was extended, the first one first."""
        return tuple(int(part) for part in self.extended_at.split("+")) if self.extended_at else ()

    def schedule_steps(self, step: int) -> int:
        """Length of the schedule that optimizer step `step` (0-based) belongs to."""
        return next((end for end in self.earlier_ends() if step < end), self.steps)

    def micro_batch_per_rank(self, world_size: int) -> int:
        """Samples a rank takes in one micro-batch; raises ConfigError where that is not whole."""
        parts = world_size * self.micro_batches_per_rank(world_size)
        require(
            self.batch_global % parts == 0,
            f"train.batch_global {self.batch_global} does not divide by {world_size} workers x "
            f"{parts // world_size} accumulated micro-batches; try --train.batch_global "
            f"{max(1, round(self.batch_global / parts)) * parts}",
        )
        return self.batch_global // parts
