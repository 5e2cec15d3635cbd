"""What each setting explains of the scores, as bars, with the line that chance reaches."""

from __future__ import annotations

from pipeline.search.importance import Importances
from pipeline.search.records import SearchRecord
from pipeline.search.scales import short_names
from pipeline.tracking.svg_drawing import BLUE, GREY, SOFT, Drawing, bar, line, text

WIDTH_PX = 1120


def importance_picture(record: SearchRecord, found: Importances) -> Drawing:
    """A bar a setting, and one for what no setting alone explains."""
    names = short_names([dimension.name for dimension in record.space])
    title = f"Importance: what each setting explains of {record.metric}"
    left, full, row = 240, 640, 26
    if found.note:
        words = f"Nothing can be told yet: {found.note}."
        return Drawing(title, WIDTH_PX, 60, text((16, 36), words, size=14, colour=SOFT))
    rows = [
        (names[one.name], one.share, BLUE if one.share > found.chance else GREY) for one in found.settings
    ]
    rows.append(("noise and interplay", found.unexplained, "#c3cad3"))
    body = []
    for number, (name, share, colour) in enumerate(rows):
        top = 26 + number * row
        body.append(text((left - 10, top + 15), name, anchor="end", weight=600 if colour == BLUE else 400))
        body.append(bar((left, top + 3), (full * share, row - 9), colour=colour))
        body.append(text((left + full * share + 8, top + 15), f"{share:.0%}", colour=SOFT))
    x = left + full * found.chance
    body.append(line((x, 20), (x, 26 + row * (len(rows) - 1)), colour=SOFT, dash="3 3"))
    body.append(text((x + 4, 16), f"chance reaches {found.chance:.0%}", size=11, colour=SOFT))
    caption = (
        f"Shares of the differences between scores over the whole space, from {found.num_trials} trials. "
        "What does not pass the dashed line (grey) may be luck: of scores shuffled among the trials, some "
        "setting explains that much in one case of twenty."
    )
    return Drawing(title, WIDTH_PX, 26 + row * len(rows) + 6, "".join(body), caption)
