"""A confusion matrix that a person can read at a glance.

The table's convention, shared with the report: the first column names the labelled class, the other
columns are the predicted classes in the same order, and the cells are pixel counts.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def row_shares(rows: Sequence[Sequence[Any]]) -> NDArray[np.float64]:
    """Each labelled class's pixels as shares by predicted class; a class without pixels is all NaN."""
    counts = np.array([row[1:] for row in rows], np.float64)
    totals = counts.sum(1, keepdims=True)
    return np.where(totals > 0, counts / np.maximum(totals, 1), np.nan)


def confusion_png(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str) -> bytes:
    """PNG of the row-normalised matrix with percentages; classes without labelled pixels stay grey."""
    # Half a second to import, needed by the driver alone; Figure (not pyplot) is safe in a thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    names, shares = list(columns[1:]), row_shares(rows)
    size = 2.5 + 0.45 * len(names)
    figure = Figure(figsize=(size, size), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_facecolor("0.85")
    axes.imshow(np.ma.masked_invalid(shares), cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), [str(row[0]) for row in rows])
    axes.set(xlabel="predicted", ylabel="labelled", title=title)
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            colour = "white" if share > 0.6 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
