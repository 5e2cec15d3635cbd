"""Slices, a panel a setting with the score over its values and what the setting does by itself."""

from __future__ import annotations

from pipeline.search.importance import Importance, Importances
from pipeline.search.records import SearchRecord
from pipeline.search.scales import Scale, short_names, value_text
from pipeline.search.scored_trials import ALIKE, DEEP, ESTIMATED, ScoredTrials, varied_dimensions
from pipeline.tracking.svg_chart import shown
from pipeline.tracking.svg_drawing import (
    GREY,
    ORANGE,
    SOFT,
    At,
    Drawing,
    dot,
    empty_drawing,
    line,
    polyline,
    text,
)

WIDTH_PX = 1120
COLUMNS, ROW_PX, LEFT_PX, TOP_PX, BOTTOM_PX = 3, 250, 52, 38, 206
EFFECT = "#9db9ea"


def slices_picture(record: SearchRecord, found: Importances) -> Drawing:
    """One panel a setting: score over its values, with what the setting alone does where that is known."""
    title = f"Slices: {record.metric} over each setting"
    scored = ScoredTrials.of(record)
    if scored is None:
        return empty_drawing(title)
    dimensions = varied_dimensions(record, found)
    if not dimensions:
        return empty_drawing(title, ALIKE)
    names = short_names([dimension.name for dimension in record.space])
    by_name = {one.name: one for one in found.settings}
    width = WIDTH_PX / COLUMNS
    body = []
    for number, dimension in enumerate(dimensions):
        corner = (number % COLUMNS * width, number // COLUMNS * ROW_PX)
        panel = _Panel(corner, width - 14, Scale(dimension), scored)
        body.append(panel.drawn(names[dimension.name], by_name[dimension.name], found.chance))
    rows = -(-len(dimensions) // COLUMNS)
    caption = (
        f"Upward: {record.metric} at the full budget. Each dot is a trial, the best is orange. The pale line "
        "is what the setting does by itself, the share what that explains of the scores. Trials that leave "
        f"the setting idle are not there. {ESTIMATED}"
    )
    return Drawing(title, WIDTH_PX, rows * ROW_PX, "".join(body), caption)


class _Panel:
    """One slice; `corner` is its upper left."""

    def __init__(self, corner: At, width: float, scale: Scale, scored: ScoredTrials) -> None:
        self._left, self._top = corner[0] + LEFT_PX, corner[1]
        self._right = corner[0] + width
        self._scale, self._scored = scale, scored

    def drawn(self, name: str, importance: Importance, chance: float) -> str:
        """The whole panel."""
        return self._frame(name, importance, chance) + self._effect(importance) + self._dots()

    def _at(self, place: float, score: float) -> At:
        bottom, top = self._top + BOTTOM_PX, self._top + TOP_PX
        x = self._left + 8 + place * (self._right - self._left - 16)
        return x, bottom - self._scored.height(score) * (bottom - top)

    def _frame(self, name: str, importance: Importance, chance: float) -> str:
        dimension = self._scale.dimension
        parts = [text((self._left, self._top + 22), name, size=13, weight=600)]
        if importance.share > 0.0:
            # Beside a name of up to 24 letters, so no verb.
            words = f"{importance.share:.0%}" + ("" if importance.share > chance else ", as chance may")
            parts.append(text((self._right, self._top + 22), words, anchor="end", size=11, colour=SOFT))
        for tick in self._scored.ticks:
            y = self._at(0, tick)[1]
            parts.append(line((self._left, y), (self._right, y)))
            parts.append(text((self._left - 6, y + 4), shown(tick), anchor="end", size=10.5, colour=SOFT))
        bottom = self._top + BOTTOM_PX
        for place, words in self._scale.ticks():
            x = self._at(place, 0)[0]
            parts.append(line((x, bottom), (x, bottom + 4), colour=SOFT))
            parts.append(text((x, bottom + 17), words, anchor="middle", size=11))
        if dimension.log:
            parts.append(text((self._right, bottom + 32), "logarithmic", anchor="end", size=10, colour=SOFT))
        return "".join(parts)

    def _effect(self, importance: Importance) -> str:
        """A curve along the range, and a short bar at each value to choose."""
        name = self._scale.dimension.name
        values = [self._scored.scores[t.number].score for t in self._scored.trials if name in t.settings]
        mean = sum(values) / max(len(values), 1)
        low, high = self._scored.ticks[0], self._scored.ticks[-1]
        choices: list[At] = []
        along: list[At] = []
        for value, added in importance.effect:
            place = self._scale.place(value)
            if place is None:
                continue
            at = self._at(place, min(max(mean + added, low), high))
            (choices if self._scale.choice(value) is not None else along).append(at)
        bars = [line((x - 13, y), (x + 13, y), colour=EFFECT, width=5) for x, y in choices]
        return "".join(bars) + (polyline(along, colour=EFFECT, width=4) if len(along) > 1 else "")

    def _dots(self) -> str:
        parts = []
        for trial in self._scored.trials:
            value = trial.settings.get(self._scale.dimension.name)
            place = None if value is None else self._scale.place(value)
            if place is None:
                continue
            score = self._scored.scores[trial.number]
            best = trial.number == self._scored.best
            colour = ORANGE if best else DEEP if score.measured else GREY
            parts.append(
                dot(
                    self._at(place, score.score), colour=colour, radius=5 if best else 3.6,
                    hollow=not score.measured, tip=f"{self._scored.tip(trial)} · {value_text(value or 0)}",
                )
            )  # fmt: skip
        return "".join(parts)
