"""What a search's budget went to, trial by trial, beside training every trial to the end."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.duration import duration
from pipeline.search.curve_picture import MOST_RUNGS, STATE_COLOURS, trial_label
from pipeline.search.leaderboard import winner
from pipeline.search.records import SearchRecord, Trial
from pipeline.tracking.svg_drawing import GRID, ORANGE, SOFT, Drawing, bar, line, text

WIDTH_PX = 1120
LEFT_PX, RIGHT_PX, TOP_PX = 300, 170, 30
MOST_ROW_PX, LEAST_ROW_PX = 24, 11
TALLEST_PX = 640
NAME_CHARS = 36


@dataclass(frozen=True)
class Budget:
    """Steps and seconds of the searched trials, repeats left out."""

    steps: int
    """That were done."""
    full_steps: int
    """That training each of them to the end takes."""
    train_s: float
    """In training, evaluations and checkpoints included."""
    overhead_s: float | None
    """Beside training, for a trial on average; None where no trial is over."""

    @property
    def share(self) -> float:
        """Of the steps of full training, what was done."""
        return self.steps / self.full_steps if self.full_steps else 0.0

    @property
    def full_s(self) -> float:
        """What full training would have taken, at the pace of what was done."""
        return self.train_s / self.share if self.share else 0.0


def budget(record: SearchRecord) -> Budget:
    """What the search spent so far."""
    trials = record.searched()
    over = [trial for trial in trials if trial.is_over and trial.whole_s > 0.0]
    beside = sum(trial.whole_s - trial.train_s for trial in over) / len(over) if over else None
    return Budget(
        sum(trial.step for trial in trials),
        sum(trial.budget_steps or record.budget_steps for trial in trials),
        sum(trial.train_s for trial in trials),
        beside,
    )


def budget_line(record: SearchRecord) -> str:
    """What was spent, in one line."""
    spent = budget(record)
    words = (
        f"{spent.steps:,} of {spent.full_steps:,} steps ({spent.share:.0%}) of training all "
        f"{len(record.searched())} trials to the end"
    )
    if spent.train_s:
        words += f", {duration(spent.train_s)} of training instead of about {duration(spent.full_s)}"
    if spent.overhead_s is not None:
        words += f"; beside training, {duration(spent.overhead_s)} a trial"
    return words


def budget_picture(record: SearchRecord) -> Drawing:
    """A bar a trial: the steps that it did, on the pale bar of a full training."""
    trials = record.trials
    row_px = min(max(TALLEST_PX / max(len(trials), 1), LEAST_ROW_PX), MOST_ROW_PX)
    best = winner(record)
    height = round(TOP_PX + row_px * len(trials) + 30)
    longest = max([trial.budget_steps or record.budget_steps for trial in trials] + [1])
    scale = (WIDTH_PX - LEFT_PX - RIGHT_PX) / longest
    body = []
    for number, trial in enumerate(trials):
        top = TOP_PX + number * row_px
        colour = ORANGE if best and trial.number == best.trial.number else STATE_COLOURS[trial.state]
        body.append(_row(trial, (top, row_px), (scale, trial.budget_steps or record.budget_steps), colour))
    for rung in record.rungs if len(record.rungs) <= MOST_RUNGS else ():
        x = LEFT_PX + rung * scale
        body.append(line((x, TOP_PX - 4), (x, height - 26), colour=SOFT, dash="5 4"))
        body.append(text((x, TOP_PX - 10), f"{rung:,}", anchor="middle", size=11, colour=SOFT))
    body.append(
        text((LEFT_PX + longest * scale, TOP_PX - 10), f"{longest:,} steps", anchor="middle", size=11)
    )
    caption = "Pale: a full training. Dashed: rungs. " + _spent_on_repeats(record)
    title = f"Budget: {budget(record).share:.0%} of the steps of training all to the end"
    return Drawing(title, WIDTH_PX, height, "".join(body), caption.strip())


def _row(trial: Trial, row: tuple[float, float], scale: tuple[float, int], colour: str) -> str:
    (top, height), (px_per_step, full) = row, scale
    thick, baseline = height * 0.7, top + height * 0.5 + 3
    size = 12 if height >= 16 else 9
    words = f"{trial.step:,}" + (f" · {duration(trial.train_s)}" if trial.train_s else "")
    words += f" · {trial.state}" if trial.state in ("failed", "running") else ""
    name = trial.name if len(trial.name) <= NAME_CHARS else trial.name[: NAME_CHARS - 1] + "…"
    if trial.repeats is not None:
        name = f"{trial_label(trial.repeats)} again, seed {trial.seed}"
    return (
        text((LEFT_PX - 8, baseline), f"{name}  {trial_label(trial.number)}", anchor="end", size=size)
        + bar((LEFT_PX, top), (full * px_per_step, thick), colour=GRID)
        + bar(
            (LEFT_PX, top), (trial.step * px_per_step, thick), colour=colour, tip=trial.reason or trial.state
        )
        + text((LEFT_PX + full * px_per_step + 8, baseline), words, size=size, colour=SOFT)
    )


def _spent_on_repeats(record: SearchRecord) -> str:
    repeats = [trial for trial in record.trials if trial.repeats is not None]
    if not repeats:
        return ""
    return f"Beside that, {sum(trial.step for trial in repeats):,} steps repeat the best with fresh seeds."
