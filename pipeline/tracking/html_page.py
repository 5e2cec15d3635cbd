"""One HTML page that stands alone: what the reports of runs and of searches have in common."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

from pipeline.tracking.svg_chart import shown

logger = logging.getLogger(__name__)

DARK = """
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#98a3b3;--line:#333d4a;--paper:#151a21;
--tint:#1d242d;--mark:96,150,255}}
"""
"""For pages whose pictures take their colours from the page."""
STYLE = """
:root{--ink:#1c2430;--soft:#5b6675;--line:#dfe4ea;--paper:#fff;--tint:#f5f7f9;--mark:37,99,235}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1060px;
margin:0 auto;padding:24px}
h1{font-size:26px;margin:0 0 4px}h2{font-size:18px;margin:36px 0 12px;border-bottom:1px solid var(--line)}
.soft,figcaption,.legend{color:var(--soft)}.facts{display:flex;flex-wrap:wrap;gap:10px;margin:18px 0}
.facts div{background:var(--tint);border-radius:8px;padding:8px 14px}.facts b{display:block;font-size:17px;
overflow-wrap:anywhere}.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(400px,1fr));gap:18px}
figure{margin:0}figcaption{font-size:14px;margin-bottom:4px}svg{width:100%}.chart svg text{
fill:var(--soft);font-size:11px}.grid{stroke:var(--line)}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:13px}
.legend i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px}
table{border-collapse:collapse;font-size:14px}td,th{padding:3px 10px;text-align:left;
border-bottom:1px solid var(--line)}td.n{text-align:right;font-variant-numeric:tabular-nums}
.bar{height:9px;border-radius:4px;background:rgba(var(--mark),.75)}.wide{overflow-x:auto}
.matrix td{text-align:center;padding:4px 6px;border:1px solid var(--paper);min-width:22px;font-size:12px}
.matrix th{font-weight:400;font-size:12px;border:0}.matrix thead th{writing-mode:vertical-rl;
transform:rotate(180deg);padding:6px 2px}img{max-width:100%;border-radius:6px;image-rendering:auto}
.pictures figure{margin-bottom:16px}
"""


def html_page(title: str, head: str, sections: Mapping[str, str], style: str) -> str:
    """The whole page; `head` and sections are HTML, and sections without any are left out."""
    body = "".join(f"<h2>{escape(name)}</h2>{html}" for name, html in sections.items() if html)
    written = time.strftime("%Y-%m-%d %H:%M")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{style}</style></head><body><h1>{escape(title)}</h1>"
        f'<div class="soft">written {written}</div>{head}{body}</body></html>\n'
    )


def fact_boxes(facts: Mapping[str, object]) -> str:
    """The facts side by side, in their order; those that are None are left out."""
    boxes = "".join(
        f'<div><span class="soft">{escape(key.replace("_", " "))}</span><b>{escape(plain(value))}</b></div>'
        for key, value in facts.items()
        if value is not None
    )
    return f'<div class="facts">{boxes}</div>'


def write_page(path: Path, make: Callable[[], str]) -> Path | None:
    """The path, where the file was replaced as a whole by the page that `make` returns.

    Raises nothing for a disk that refuses: one line says so, and the answer is None.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(make(), encoding="utf-8")
        return part.replace(path)
    except OSError as error:
        logger.warning("[event] cannot write the report %s (%s); the journal has all of it", path, error)
        return None


def plain(value: object) -> str:
    """A value as a person reads it."""
    if isinstance(value, float):
        return shown(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
