"""All progress of a run in one place: what a resume must know beside weights and optimizer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TrainState:
    """Progress after a whole number of optimizer steps."""

    step: int = 0
    """Optimizer steps done."""
    position: int = 0
    """Samples consumed over all ranks and epochs: the only state of the data."""
    best_miou: float | None = None
    """Best mIoU of an evaluation so far."""
    best_pixel_accuracy: float | None = None
    """Pixel accuracy of that evaluation."""
    best_step: int | None = None
    """Step of that evaluation."""
    evaluated_step: int = 0
    """Step of the newest evaluation."""
    skipped_steps: int = 0
    """Steps among `step` whose update did not happen, as it was not finite."""

    def advance(self, num_samples: int) -> None:
        """One more optimizer step, over that many samples."""
        self.step += 1
        self.position += num_samples

    def note_score(self, miou: float, pixel_accuracy: float) -> bool:
        """Remember an evaluation; True when it is the best so far (a tie keeps the earlier one)."""
        self.evaluated_step = self.step
        if self.best_miou is not None and miou <= self.best_miou:
            return False
        self.best_miou, self.best_pixel_accuracy, self.best_step = miou, pixel_accuracy, self.step
        return True
