"""The trials as pictures of settings show them: scores at the full budget, their axis, and their colours.

Only so can trials be compared; where one ended early its score is an estimate (`full_budget`), and its mark
is hollow or its line dashed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.search.curve_picture import trial_label
from pipeline.search.full_budget import FullScore, full_scores, last_point
from pipeline.search.importance import Importances
from pipeline.search.leaderboard import winner
from pipeline.search.records import Dimension, SearchRecord, Trial
from pipeline.tracking.svg_chart import nice_ticks
from pipeline.tracking.svg_drawing import ORANGE, mix

PALE, DEEP = "#c9d6ea", "#12408f"
"""Of the worst score and the best."""
ALIKE = "No two trials differ in a setting yet."
ESTIMATED = "Hollow or dashed: ended early, and its score at the full budget is an estimate."


@dataclass(frozen=True)
class ScoredTrials:
    """The trials that have a score, worst first, and the axis of the scores."""

    trials: Sequence[Trial]
    scores: Mapping[int, FullScore]
    ticks: Sequence[float]
    best: int | None
    mode: str

    @classmethod
    def of(cls, record: SearchRecord) -> ScoredTrials | None:
        """Those of the search; None where nothing was scored yet."""
        scores = full_scores(record)
        best = winner(record)
        number = best.trial.number if best else None
        sign = 1.0 if record.mode == "max" else -1.0
        trials = [trial for trial in record.trials if trial.number in scores]
        trials.sort(key=lambda trial: (trial.number == number, sign * scores[trial.number].score))
        values = [scores[trial.number].score for trial in trials]
        return (
            cls(trials, scores, nice_ticks(min(values), max(values)), number, record.mode) if values else None
        )

    def share(self, trial: Trial) -> float:
        """How good it is, from 0 for the worst to 1 for the best."""
        values = [score.score for score in self.scores.values()]
        low, high = min(values), max(values)
        share = (self.scores[trial.number].score - low) / (high - low) if high > low else 1.0
        return share if self.mode == "max" else 1.0 - share

    def height(self, score: float) -> float:
        """Where the score lies on its axis, from 0 to 1."""
        return (score - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])

    def colour(self, trial: Trial) -> str:
        """Orange for the best, else the darker the better."""
        return ORANGE if trial.number == self.best else mix(PALE, DEEP, self.share(trial))

    def tip(self, trial: Trial) -> str:
        """What is shown under the mouse."""
        score = self.scores[trial.number]
        last = last_point(trial)
        how = "" if score.measured or last is None else f" estimated, {last.score:.4f} at step {last.step}"
        return f"{trial_label(trial.number)} {trial.name}: {score.score:.4f}{how}"


def varied_dimensions(record: SearchRecord, found: Importances) -> list[Dimension]:
    """The dimensions in which trials differ, most important first."""
    order = {one.name: number for number, one in enumerate(found.settings)}
    varied = [d for d in record.space if len({trial.settings.get(d.name) for trial in record.trials}) > 1]
    return sorted(varied, key=lambda dimension: order[dimension.name])
