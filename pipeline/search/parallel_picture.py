"""Parallel coordinates, a line a trial across its settings to its score."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.search.importance import Importances
from pipeline.search.records import Dimension, SearchRecord, Trial
from pipeline.search.scales import Scale, short_names
from pipeline.search.scored_trials import ALIKE, ESTIMATED, ScoredTrials, varied_dimensions
from pipeline.tracking.svg_chart import shown
from pipeline.tracking.svg_drawing import SOFT, At, Drawing, empty_drawing, line, polyline, text, turned

WIDTH_PX = 1120
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX, IDLE_PX = 50, 110, 100, 420, 452
MOST_AXES = 10
"""Settings beyond these explain the least, and are told of instead of drawn."""


def parallel_picture(record: SearchRecord, found: Importances) -> Drawing:
    """Parallel coordinates: a line a trial over an axis a setting, and at last the score."""
    title = "Parallel coordinates: every trial across its settings"
    scored = ScoredTrials.of(record)
    if scored is None:
        return empty_drawing(title)
    varied = varied_dimensions(record, found)
    if not varied:
        return empty_drawing(title, ALIKE)
    dimensions = varied[:MOST_AXES]
    gap = (WIDTH_PX - LEFT_PX - RIGHT_PX) / len(dimensions)
    xs = [LEFT_PX + number * gap for number in range(len(dimensions) + 1)]
    lines = [_parallel_line(trial, scored, dimensions, xs) for trial in scored.trials]
    names = short_names([dimension.name for dimension in record.space])
    axes = [
        _axis(xs[number], names[dimension.name], Scale(dimension).ticks())
        for number, dimension in enumerate(dimensions)
    ]
    score_ticks = [(scored.height(tick), shown(tick)) for tick in scored.ticks]
    axes.append(_axis(xs[-1], record.metric, score_ticks))
    idle = ""
    if any(d.name not in t.settings for d in dimensions for t in scored.trials):
        idle = text((6, IDLE_PX + 4), "idle", size=11, colour=SOFT)
    caption = (
        "Axes from left to right by importance, the score at the right. The darker a line, the better; the "
        f"best is orange. {ESTIMATED}"
    )
    if len(varied) > MOST_AXES:
        left_out = ", ".join(names[dimension.name] for dimension in varied[MOST_AXES:])
        caption += f" Left out, as they explain the least: {left_out}."
    return Drawing(title, WIDTH_PX, IDLE_PX + 22, "".join(lines) + "".join(axes) + idle, caption)


def _parallel_line(
    trial: Trial, scored: ScoredTrials, dimensions: Sequence[Dimension], xs: Sequence[float]
) -> str:
    points: list[At] = []
    for x, dimension in zip(xs, dimensions, strict=False):
        value = trial.settings.get(dimension.name)
        place = None if value is None else Scale(dimension).place(value)
        points.append((x, IDLE_PX if place is None else _axis_y(place)))
    score = scored.scores[trial.number]
    points.append((xs[-1], _axis_y(scored.height(score.score))))
    best = trial.number == scored.best
    return polyline(
        points, colour=scored.colour(trial), width=3.2 if best else 1.6, dash="" if score.measured else "5 3",
        opacity=1.0 if score.measured else 0.55, tip=scored.tip(trial),
    )  # fmt: skip


def _axis(x: float, name: str, ticks: Sequence[tuple[float, str]]) -> str:
    parts = [line((x, TOP_PX), (x, BOTTOM_PX), colour=SOFT)]
    above = x - 4, TOP_PX - 12.0
    parts.append(turned(text(above, name, weight=600), -28, above))
    for place, words in ticks:
        y = _axis_y(place)
        parts.append(line((x - 3, y), (x + 3, y), colour=SOFT))
        parts.append(text((x + 6, y + 4), words, size=11, halo=True))
    return "".join(parts)


def _axis_y(place: float) -> float:
    return BOTTOM_PX - place * (BOTTOM_PX - TOP_PX)
