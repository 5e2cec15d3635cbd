"""Pictures as SVG by hand: the same drawing stands in a page, and alone in a file that any viewer shows.

Everything is said by attributes, as a file has no style sheet around it: dark ink on white paper. Lengths
are in px of the drawing's own width, which a page scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

INK, SOFT, GRID, PAPER = "#1c2430", "#566070", "#dfe4ea", "#ffffff"
BLUE, ORANGE, GREY, RED, GREEN = "#2563eb", "#d9480f", "#9aa5b1", "#c92a2a", "#2b8a3e"
FONT = "system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif"

Anchor = Literal["start", "middle", "end"]
At = tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """A picture with what a reader of its page is told of it."""

    title: str
    width_px: int
    height_px: int
    body: str
    caption: str = ""
    """How to read it, in a sentence or two."""

    def figure(self) -> str:
        """The drawing in a page."""
        return (
            f"<figure>{self._svg()}"
            + (f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else "")
            + "</figure>"
        )

    def file(self) -> str:
        """The drawing as a file of its own, with its title, on white."""
        paper = f'<rect width="{self.width_px}" height="{self.height_px + 34}" y="-34" fill="{PAPER}"/>'
        title = text((16, -12), self.title, size=16, weight=600)
        size = f'width="{self.width_px}" height="{self.height_px + 34}"'  # else MLflow's page shows nothing
        return self._svg(paper + title, 34, f' xmlns="http://www.w3.org/2000/svg" {size}') + "\n"

    def _svg(self, first: str = "", top_px: int = 0, attributes: str = "") -> str:
        size = f"{self.width_px} {self.height_px + top_px}"
        return (
            f'<svg{attributes} viewBox="0 {-top_px} {size}" role="img" '
            f'aria-label="{escape(self.title)}" font-family="{FONT}">{first}{self.body}</svg>'
        )


def empty_drawing(title: str, why: str = "Nothing was scored yet.") -> Drawing:
    """In place of a picture while there is nothing to be seen in it."""
    return Drawing(title, 1120, 60, text((16, 36), why, size=14, colour=SOFT))


def text(
    at: At, words: str, *, anchor: Anchor = "start", size: float = 12, colour: str = INK, weight: int = 400,
    halo: bool = False,
) -> str:  # fmt: skip
    """Words on a line; with a `halo` they stay legible on curves."""
    look = f' stroke="{PAPER}" stroke-width="3" paint-order="stroke"' if halo else ""
    look += f' font-weight="{weight}"' if weight != 400 else ""
    return (
        f'<text x="{at[0]:.1f}" y="{at[1]:.1f}" text-anchor="{anchor}" font-size="{size:g}" fill="{colour}"'
        f"{look}>{escape(words)}</text>"
    )


def turned(body: str, degrees: float, around: At) -> str:
    """The body, turned clockwise."""
    return f'<g transform="rotate({degrees:g} {around[0]:.1f} {around[1]:.1f})">{body}</g>'


def line(start: At, end: At, *, colour: str = GRID, width: float = 1, dash: str = "") -> str:
    """A straight line."""
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" '
        f'stroke="{colour}" stroke-width="{width:g}"{dashed}/>'
    )


def polyline(
    points: Sequence[At],
    *,
    colour: str,
    width: float = 1.5,
    dash: str = "",
    opacity: float = 1.0,
    tip: str = "",
) -> str:
    """A curve through the points; `tip` is shown under the mouse."""
    where = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    pale = f' stroke-opacity="{opacity:g}"' if opacity < 1 else ""
    return (
        f'<polyline fill="none" stroke="{colour}" stroke-width="{width:g}" stroke-linejoin="round"'
        f'{dashed}{pale} points="{where}">{_tip(tip)}</polyline>'
    )


def dot(at: At, *, colour: str, radius: float = 3.5, hollow: bool = False, tip: str = "") -> str:
    """A round mark, filled or hollow."""
    fill = f'fill="{PAPER}" stroke="{colour}" stroke-width="1.6"' if hollow else f'fill="{colour}"'
    return f'<circle cx="{at[0]:.1f}" cy="{at[1]:.1f}" r="{radius:g}" {fill}>{_tip(tip)}</circle>'


def cross(at: At, *, colour: str, reach: float = 4.0, tip: str = "") -> str:
    """An ×, where something ended early."""
    left, right = f"{at[0] - reach:.1f}", f"{at[0] + reach:.1f}"
    above, below = f"{at[1] - reach:.1f}", f"{at[1] + reach:.1f}"
    return (
        f'<path d="M{left} {above}L{right} {below}M{left} {below}L{right} {above}" stroke="{colour}" '
        f'stroke-width="1.8">{_tip(tip)}</path>'
    )


def bar(at: At, size: tuple[float, float], *, colour: str, tip: str = "") -> str:
    """A filled box; `at` is its upper left corner."""
    return (
        f'<rect x="{at[0]:.1f}" y="{at[1]:.1f}" width="{max(size[0], 0):.1f}" height="{size[1]:.1f}" rx="2" '
        f'fill="{colour}">{_tip(tip)}</rect>'
    )


def mix(light: str, dark: str, share: float) -> str:
    """The colour that lies so far from the first to the second; both as #rrggbb."""
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (light, dark)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(*ends, strict=True))


def _tip(words: str) -> str:
    return f"<title>{escape(words)}</title>" if words else ""
