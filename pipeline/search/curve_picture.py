"""The learning curves of all trials, with the rungs at which they were compared."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.search.full_budget import finite_points
from pipeline.search.leaderboard import winner
from pipeline.search.records import SearchRecord, Trial
from pipeline.tracking.svg_chart import nice_ticks, shown
from pipeline.tracking.svg_drawing import (
    BLUE,
    GREEN,
    GREY,
    GRID,
    INK,
    ORANGE,
    RED,
    SOFT,
    At,
    Drawing,
    cross,
    dot,
    empty_drawing,
    line,
    polyline,
    text,
)

WIDTH_PX = 1120
LEFT_PX, RIGHT_PX = 64, 150
TOP_PX, BOTTOM_PX, HEIGHT_PX = 44, 400, 446
LABEL_PX = 15
"""Height of a line of words beside a curve."""
MOST_RUNGS = 7
"""Of a scheduler that decides at every evaluation there is no room for words."""
LEGEND = (("best", ORANGE), ("defaults", INK), ("trained to the end", BLUE), ("stopped early", GREY))
STATE_COLOURS = {"done": BLUE, "stopped": GREY, "failed": RED, "running": GREEN}


def trial_label(number: int) -> str:
    """A trial in few characters: `007`."""
    return f"{number:03d}"


def curves_picture(record: SearchRecord) -> Drawing:
    """Score over the optimizer step, a curve a trial, a dashed line a rung."""
    curves = {trial.number: curve for trial in record.searched() if (curve := finite_points(trial))}
    title = f"Learning curves: {record.metric} of every trial"
    if not curves:
        return empty_drawing(title)
    values = [value for curve in curves.values() for value in curve.values()]
    ticks = nice_ticks(min(values), max(values), 6)
    last = max(record.budget_steps, *(step for curve in curves.values() for step in curve))
    frame = _Frame(last, (ticks[0], ticks[-1]))
    body = [_axes(record, frame, ticks), _rungs(record, frame), _legend()]
    best = winner(record)
    best_number = best.trial.number if best else None
    ends: list[tuple[At, str, str]] = []
    for trial in sorted(
        record.searched(), key=lambda t: (t.number == best_number, t.number == 0, t.state == "done")
    ):
        if trial.number in curves:
            points = [frame.at(step, value) for step, value in curves[trial.number].items()]
            colour = _colour(trial, best_number)
            body.append(_curve(trial, points, colour, main=trial.number in (0, best_number)))
            if trial.state == "done" or trial.number in (0, best_number):
                score = list(curves[trial.number].values())[-1]
                ends.append((points[-1], _end_label(trial, score, best_number), colour))
    body += _end_labels(ends)
    caption = (
        "Dashed lines are rungs, with how many trials were compared there and how many went on; a cross "
        f"marks where one was stopped. The budget of a full training is {record.budget_steps:,} steps."
    )
    return Drawing(title, WIDTH_PX, HEIGHT_PX, "".join(body), caption)


class _Frame:
    """Where steps and scores lie in the picture of the curves."""

    def __init__(self, last_step: int, scores: tuple[float, float]) -> None:
        self._last, self._scores = max(last_step, 1), scores

    def x(self, step: float) -> float:
        return LEFT_PX + step / self._last * (WIDTH_PX - LEFT_PX - RIGHT_PX)

    def y(self, score: float) -> float:
        low, high = self._scores
        return BOTTOM_PX - (score - low) / (high - low) * (BOTTOM_PX - TOP_PX)

    def at(self, step: float, score: float) -> At:
        return self.x(step), self.y(score)


def _axes(record: SearchRecord, frame: _Frame, ticks: Sequence[float]) -> str:
    right = WIDTH_PX - RIGHT_PX
    parts = []
    for tick in ticks:
        parts.append(line((LEFT_PX, frame.y(tick)), (right, frame.y(tick))))
        parts.append(text((LEFT_PX - 8, frame.y(tick) + 4), shown(tick), anchor="end", colour=SOFT))
    last = round((right - LEFT_PX) / (frame.x(1) - LEFT_PX))
    for step in nice_ticks(0, last, 8):
        if step <= last:
            parts.append(text((frame.x(step), BOTTOM_PX + 18), f"{step:,.0f}", anchor="middle", colour=SOFT))
    parts.append(text(((LEFT_PX + right) / 2, BOTTOM_PX + 38), "optimizer step", anchor="middle"))
    parts.append(text((8, TOP_PX - 12), record.metric, weight=600))
    return "".join(parts)


def _rungs(record: SearchRecord, frame: _Frame) -> str:
    """Each rung, and how many were compared there and how many of these went on."""
    parts = []
    if len(record.rungs) > MOST_RUNGS:
        return "".join(line((x, TOP_PX), (x, BOTTOM_PX), dash="2 4") for x in map(frame.x, record.rungs))
    for rung in record.rungs:
        compared = [trial for trial in record.searched() if rung in trial.rungs]
        ended = [trial for trial in compared if trial.state == "stopped" and trial.rungs[-1] == rung]
        x = frame.x(rung)
        parts.append(line((x, TOP_PX - 6), (x, BOTTOM_PX), colour=SOFT, dash="5 4"))
        counts = f"{rung:,}: {len(compared)} → {len(compared) - len(ended)}"
        parts.append(text((x + 5, TOP_PX + 4), counts, size=11, colour=SOFT, halo=True))
    return "".join(parts)


def _legend() -> str:
    parts, x = [], 190.0
    for words, colour in LEGEND:
        parts.append(line((x, 16), (x + 22, 16), colour=colour, width=3))
        parts.append(text((x + 28, 20), words))
        x += 46 + 7.2 * len(words)
    return "".join(parts)


def _colour(trial: Trial, best: int | None) -> str:
    if trial.number == best:
        return ORANGE
    return INK if trial.number == 0 and trial.state != "failed" else STATE_COLOURS[trial.state]


def _curve(trial: Trial, points: Sequence[At], colour: str, *, main: bool) -> str:
    tip = f"{trial_label(trial.number)} {trial.name}: {trial.reason or trial.state}"
    faint = trial.state == "stopped" and not main
    curve = polyline(
        points, colour=colour, width=2.6 if main else 1.4, opacity=0.75 if faint else 1.0, tip=tip,
        dash="7 3" if trial.number == 0 and colour == INK else "",
    )  # fmt: skip
    if trial.state in ("stopped", "failed"):
        return curve + cross(points[-1], colour=colour, tip=tip)
    return curve + dot(points[-1], colour=colour, hollow=trial.state == "running", tip=tip)


def _end_label(trial: Trial, score: float, best: int | None) -> str:
    role = " best" if trial.number == best else " defaults" if trial.number == 0 else ""
    return f"{trial_label(trial.number)}{role} {score:.3f}"


def _end_labels(ends: Sequence[tuple[At, str, str]]) -> list[str]:
    """The labels beside the ends of curves, pushed apart so that all can be read, as far as there is room."""
    room = int((BOTTOM_PX - TOP_PX) / LABEL_PX)
    kept = sorted(ends[-room:], key=lambda end: end[0][1])  # the last are the best and the defaults
    heights: list[float] = []
    for (_, y), _, _ in kept:
        heights.append(max([y] + [height + LABEL_PX for height in heights[-1:]]))
    for number in reversed(range(len(heights))):
        limit = heights[number + 1] - LABEL_PX if number + 1 < len(heights) else BOTTOM_PX
        heights[number] = min(heights[number], limit)
    parts = []
    for ((x, y), words, colour), height in zip(kept, heights, strict=True):
        left = max(x, WIDTH_PX - RIGHT_PX) + 14
        parts.append(line((x + 4, y), (left - 2, height), colour=GRID))
        parts.append(text((left, height + 4), words, colour=colour, weight=600, halo=True))
    return parts
