"""The report of a run: one HTML file made from its journal alone, readable anywhere, nothing fetched.

It stands beside the journal because that is all it needs: no model, no data, no server.
"""

from __future__ import annotations

import base64
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.tracking.confusion_picture import row_shares
from pipeline.tracking.html_page import DARK, STYLE, fact_boxes, html_page, plain, write_page
from pipeline.tracking.incidents import COLUMNS, Account, read_account
from pipeline.tracking.journal import Event, Metrics, Picture, Record, Table, read_journal
from pipeline.tracking.svg_chart import Points, line_chart

REPORT = "report.html"
CONFUSION, PER_CLASS = "confusion", "iou_per_class"
"""Ends of the keys of the tables that get a form of their own."""
LEFT_OUT = "val/iou/"
"""One chart a class would bury the others; the table has them."""
TOGETHER = ("train/loss", "accm/gate")
"""Beginnings of the names of curves that share a chart."""
JPEG_QUALITY = 88


def write_report(
    run_dir: Path, title: str, facts: Mapping[str, object], config: Mapping[str, Any]
) -> Path | None:
    """`<run_dir>/report.html`, replaced as a whole; `facts` are shown at the top, in their order.

    Raises nothing for a disk that refuses: one line says so, and the answer is None.
    """
    return write_page(run_dir / REPORT, lambda: _page(run_dir, title, facts, config))


def _page(run_dir: Path, title: str, facts: Mapping[str, object], config: Mapping[str, Any]) -> str:
    records = read_journal(run_dir)
    tables = {r.key: r for r in records if isinstance(r, Table)}
    sections = {
        "Curves": _charts(records),
        "IoU by class": "".join(_per_class(t) for key, t in tables.items() if key.endswith(PER_CLASS)),
        "Scenes": _pictures(run_dir, records),
        "Confusion": "".join(_confusion(t) for key, t in tables.items() if key.endswith(CONFUSION)),
        "Incidents": _incidents(read_account(run_dir)),
        "What happened": _events([r for r in records if isinstance(r, Event)]),
        "Settings": _settings(config),
    }
    return html_page(title, fact_boxes(facts), sections, STYLE + DARK)


def _charts(records: Sequence[Record]) -> str:
    curves: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for record in records:
        if isinstance(record, Metrics):
            for key, value in record.values.items():
                curves[key].append((record.step, value))
    groups: dict[str, dict[str, Points]] = defaultdict(dict)
    for key in sorted(curves):
        if not key.startswith(LEFT_OUT):
            chart = next((start for start in TOGETHER if key.startswith(start)), key)
            groups[chart][key] = curves[key]
    first = ["val/miou", "train/loss", "val/pixel_accuracy"]
    order = [key for key in first if key in groups] + [key for key in groups if key not in first]
    charts = "".join(line_chart(key, groups[key]) for key in order)
    return f'<div class="charts">{charts}</div>' if charts else ""


def _per_class(table: Table) -> str:
    """Classes with a bar for their IoU (the second column), best first; absent ones last."""
    rows = sorted(table.rows, key=lambda row: -1.0 if row[1] is None else float(row[1]), reverse=True)
    lines = []
    for name, iou, *rest in rows:
        value = "absent" if iou is None else f"{iou:.3f}"
        bar = "" if iou is None else f'<div class="bar" style="width:{200 * iou:.0f}px"></div>'
        cells = "".join(f'<td class="n">{escape(plain(cell))}</td>' for cell in rest)
        lines.append(f'<tr><td>{escape(str(name))}</td><td class="n">{value}</td><td>{bar}</td>{cells}</tr>')
    class_name, iou_name, *others = (escape(column.replace("_", " ")) for column in table.columns)
    head = "".join(f"<th>{column}</th>" for column in (class_name, iou_name, "", *others))
    return f'<p class="soft">At step {table.step}.</p><table><tr>{head}</tr>{"".join(lines)}</table>'


def _confusion(table: Table) -> str:
    """Rows are what a pixel is, columns what it was taken for, in percent of the row."""
    shares = row_shares(table.rows)
    heads = "".join(f"<th>{escape(name)}</th>" for name in table.columns[1:])
    lines = []
    for row, row_share in zip(table.rows, shares, strict=True):
        if np.isnan(row_share).all():
            continue  # no pixel of this class was labelled
        cells = "".join(
            f'<td style="background:rgba(var(--mark),{share:.3f})">{100 * share:.0f}</td>'
            if share >= 0.005
            else "<td></td>"
            for share in row_share
        )
        lines.append(f"<tr><th>{escape(str(row[0]))}</th>{cells}</tr>")
    return (
        '<p class="soft">Rows: the label. Columns: the prediction. Percent of the labelled pixels at step '
        f'{table.step}; classes without labelled pixels have no row.</p><div class="wide">'
        f'<table class="matrix"><thead><tr><td></td>{heads}</tr></thead>{"".join(lines)}</table></div>'
    )


def _pictures(run_dir: Path, records: Sequence[Record]) -> str:
    """The newest picture of every scene."""
    newest = {r.key: r for r in records if isinstance(r, Picture)}
    figures = []
    for key, record in sorted(newest.items()):
        picture = cv2.imread(str(run_dir / record.path))
        if picture is None:
            continue
        _, jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        data = base64.b64encode(jpeg.tobytes()).decode()
        figures.append(
            f"<figure><figcaption>{escape(key)}, step {record.step}: picture, label, prediction</figcaption>"
            f'<img alt="{escape(key)}" src="data:image/jpeg;base64,{data}"></figure>'
        )
    return f'<div class="pictures">{"".join(figures)}</div>' if figures else ""


def _incidents(account: Account) -> str:
    lines = [
        "".join(f"<td>{'' if cell is None else escape(plain(cell))}</td>" for cell in row)
        for row in account.rows()
    ]
    head = "".join(f"<th>{column.replace('_', ' ')}</th>" for column in COLUMNS)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<p class="soft">{account.line()}.</p><table><tr>{head}</tr>{body}</table>' if lines else ""


def _events(events: Sequence[Event]) -> str:
    lines = []
    for event in sorted(events, key=lambda e: e.time_s):
        details = ", ".join(f"{key} {plain(value)}" for key, value in event.fields.items())
        clock = time.strftime("%H:%M:%S", time.localtime(event.time_s))
        lines.append(
            f'<tr><td>{clock}</td><td class="n">{event.step}</td><td>{escape(event.name)}</td>'
            f'<td class="soft">{escape(details)}</td></tr>'
        )
    head = "<tr><th>time</th><th>step</th><th>event</th><th></th></tr>"
    return f"<table>{head}{''.join(lines)}</table>" if lines else ""


def _settings(config: Mapping[str, Any]) -> str:
    text = escape(json.dumps(config, indent=2, default=str))
    return (
        f"<details><summary>The whole resolved config</summary><pre>{text}</pre></details>" if config else ""
    )
