"""The report of a run: one HTML file made from its journal alone, readable anywhere, nothing fetched.

It stands beside the journal because that is all it needs: no model, no data, no server.
"""

from __future__ import annotations

import base64
import json
import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pipeline.tracking.confusion_picture import row_shares
from pipeline.tracking.incidents import COLUMNS, Account, read_account
from pipeline.tracking.journal import Event, Metrics, Picture, Record, Table, read_journal
from pipeline.tracking.svg_chart import Points, line_chart, shown

logger = logging.getLogger(__name__)

REPORT = "report.html"
CONFUSION, PER_CLASS = "confusion", "iou_per_class"
"""Ends of the keys of the tables that get a form of their own."""
LEFT_OUT = "val/iou/"
"""One chart a class would bury the others; the table has them."""
TOGETHER = ("train/loss", "accm/gate")
"""Beginnings of the names of curves that share a chart."""
JPEG_QUALITY = 88

_STYLE = """
:root{--ink:#1c2430;--soft:#5b6675;--line:#dfe4ea;--paper:#fff;--tint:#f5f7f9;--mark:37,99,235}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#98a3b3;--line:#333d4a;--paper:#151a21;
--tint:#1d242d;--mark:96,150,255}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1060px;
margin:0 auto;padding:24px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 12px;border-bottom:1px solid var(--line)}
.soft,figcaption,.legend{color:var(--soft)}.facts{display:flex;flex-wrap:wrap;gap:10px;margin:18px 0}
.facts div{background:var(--tint);border-radius:8px;padding:8px 14px}.facts b{display:block;font-size:17px;
overflow-wrap:anywhere}.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(400px,1fr));gap:18px}
figure{margin:0}figcaption{font-size:14px;margin-bottom:4px}svg{width:100%}svg text{fill:var(--soft);
font-size:11px}.grid{stroke:var(--line)}.legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:13px}
.legend i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px}
table{border-collapse:collapse;font-size:14px}td,th{padding:3px 10px;text-align:left;
border-bottom:1px solid var(--line)}td.n{text-align:right;font-variant-numeric:tabular-nums}
.bar{height:9px;border-radius:4px;background:rgba(var(--mark),.75)}.wide{overflow-x:auto}
.matrix td{text-align:center;padding:4px 6px;border:1px solid var(--paper);min-width:22px;font-size:12px}
.matrix th{font-weight:400;font-size:12px;border:0}.matrix thead th{writing-mode:vertical-rl;
transform:rotate(180deg);padding:6px 2px}img{max-width:100%;border-radius:6px;image-rendering:auto}
.pictures figure{margin-bottom:16px}
"""


def write_report(
    run_dir: Path, title: str, facts: Mapping[str, object], config: Mapping[str, Any]
) -> Path | None:
    """`<run_dir>/report.html`, replaced as a whole; `facts` are shown at the top, in their order.

    Raises nothing for a disk that refuses: one line says so, and the answer is None.
    """
    path = run_dir / REPORT
    try:
        page = _page(run_dir, title, facts, config)
        part = path.with_suffix(".part")
        part.write_text(page, encoding="utf-8")
        return part.replace(path)
    except OSError as error:
        logger.warning("[event] cannot write the report %s (%s); the journal has all of it", path, error)
        return None


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
    body = "".join(f"<h2>{escape(name)}</h2>{html}" for name, html in sections.items() if html)
    boxes = "".join(
        f'<div><span class="soft">{escape(key.replace("_", " "))}</span><b>{escape(_plain(value))}</b></div>'
        for key, value in facts.items()
        if value is not None
    )
    written = time.strftime("%Y-%m-%d %H:%M")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f'<div class="soft">written {written}</div><div class="facts">{boxes}</div>{body}</body></html>\n'
    )


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
        cells = "".join(f'<td class="n">{escape(_plain(cell))}</td>' for cell in rest)
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
        "".join(f"<td>{'' if cell is None else escape(_plain(cell))}</td>" for cell in row)
        for row in account.rows()
    ]
    head = "".join(f"<th>{column.replace('_', ' ')}</th>" for column in COLUMNS)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<p class="soft">{account.line()}.</p><table><tr>{head}</tr>{body}</table>' if lines else ""


def _events(events: Sequence[Event]) -> str:
    lines = []
    for event in sorted(events, key=lambda e: e.time_s):
        details = ", ".join(f"{key} {_plain(value)}" for key, value in event.fields.items())
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


def _plain(value: object) -> str:
    if isinstance(value, float):
        return shown(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
