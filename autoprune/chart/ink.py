"""What all pictures share: colours, shapes, how they begin."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

MARGIN = 14
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1b1f24", "#999999")  # Okabe and Ito
DASHES = ("none", "7 3", "2 2", "9 3 2 3")
KEPT, CUT, INK, QUIET, GROUND = "#0072b2", "#d9dee3", "#1b1f24", "#57606a", "#ffffff"
FONT = "Helvetica, Arial, sans-serif"
SHAPES = (
    "M-1.5,-{r}h3v{d}h-3z",
    "M0,-{r}l{r},{d}h-{d}z",
    "M0,-{r}l{r},{r}l-{r},{r}l-{r},-{r}z",
    "M-{r},-{r}h{d}v{d}h-{d}z",
)
"""A bar, a triangle, a diamond, a square: around the origin, ``r`` to either side."""


def opening(width: int, height: int, title: str, notes: Sequence[str]) -> list[str]:
    """How every picture begins: a white ground, the title, a line per note."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"',
        f'role="img" font-family="{FONT}" font-size="12" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect class="ground" width="{width}" height="{height}" fill="{GROUND}"/>',
        f'<text class="title" x="{MARGIN}" y="{MARGIN + 10}" font-size="15" font-weight="600">{escape(title)}</text>',
    ]
    for number, note in enumerate(notes):
        parts.append(f'<text x="{MARGIN}" y="{MARGIN + 30 + 18 * number}" fill="{QUIET}">{escape(note)}</text>')
    return parts


def short(name: str, limit: int = 32) -> str:
    """The end of a long name says more than its beginning."""
    return name if len(name) <= limit else f"…{name[-limit + 1 :]}"


def shape(number: int, radius: int) -> str:
    """The outline of a marker, for ``<path d=…>``."""
    return SHAPES[number % len(SHAPES)].format(r=radius, d=2 * radius)
