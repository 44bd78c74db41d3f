"""Small multiples as SVG, without any library: a grid of little curves, all on the same axes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from autoprune.chart import COLOURS, CUT, KEPT, MARGIN, QUIET, opening, short

WIDE, HIGH = 150, 84  # the inside of a panel
BESIDE, ABOVE = 22, 62  # the room between two panels
LEFT = 52
COLUMNS = 6
DAMAGE = COLOURS[1]
DECADES = 4
SHARES = (0.0, 0.5, 1.0)

Point = tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """One curve: its ``line``, the ``dots`` on it that were measured and what each says, and where it ``failed``.

    Across goes from 0 to 1; up nothing is negative. A panel without a line is grey and has its ``note`` alone.
    """

    title: str
    note: str
    line: Sequence[Point] = ()
    dots: Sequence[Point] = ()
    failed: Sequence[float] = ()
    says: Sequence[str] = ()


def multiples(panels: Sequence[Panel], title: str, across: str, notes: Sequence[str], columns: int = COLUMNS) -> str:
    """The panels row by row, as they come.

    The vertical axis of all is the same and logarithmic, four decades from the highest point of any; what is less lies
    on its bottom. So curves that differ by a factor show it, whatever the steepest of them loses.
    """
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    top = MARGIN + 24 + 18 * len(notes) + 44
    width = max(LEFT + columns * (WIDE + BESIDE) + MARGIN, 640)
    height = top + rows * (HIGH + ABOVE) - 8
    highest = max((y for panel in panels for _, y in panel.line), default=0.0) or 1.0
    decade = math.ceil(math.log10(highest))
    parts = opening(width, height, title, notes)
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        parts += _panel(panel, LEFT + column * (WIDE + BESIDE), top + row * (HIGH + ABOVE), decade, column == 0)
    parts.append(f'<text x="{LEFT}" y="{height - MARGIN}" fill="{QUIET}">across: {escape(across)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, left: int, top: int, decade: int, first: bool) -> Iterator[str]:
    """One panel, whose top is a power of ten; the first of a row carries the numbers of the vertical axis."""

    def place(point: Point) -> tuple[float, float]:
        across, up = point
        below = decade - math.log10(up) if up > 0 else DECADES
        return left + WIDE * across, top + HIGH * min(below, DECADES) / DECADES

    drawn = panel.line or panel.failed
    ink = "" if drawn else f' fill="{QUIET}"'
    yield f'<text x="{left}" y="{top - 21}" font-weight="600"{ink}>{escape(short(panel.title, 22))}</text>'
    yield f'<text x="{left}" y="{top - 7}" font-size="11" fill="{QUIET}">{escape(panel.note)}</text>'
    yield f'<rect x="{left}" y="{top}" width="{WIDE}" height="{HIGH}" fill="none" stroke="{CUT}"/>'
    if not drawn:
        return
    tick = f'font-size="10" fill="{QUIET}"'
    for below in range(DECADES + 1):
        y = top + HIGH * below / DECADES
        yield f'<line x1="{left}" x2="{left + WIDE}" y1="{y:.1f}" y2="{y:.1f}" stroke="{CUT}"/>'
        if first:
            value = f"{'≤' if below == DECADES else ''}{10.0 ** (decade - below):g}"
            yield f'<text x="{left - 6}" y="{y + 4:.1f}" {tick} text-anchor="end">{value}</text>'
    for share in SHARES:
        yield f'<text x="{left + WIDE * share}" y="{top + HIGH + 13}" {tick} text-anchor="middle">{share:g}</text>'
    points = " ".join("{:.1f},{:.1f}".format(*place(point)) for point in panel.line)
    yield f'<polyline points="{points}" fill="none" stroke="{KEPT}" stroke-width="2"/>'
    for number, point in enumerate(panel.dots):
        x, y = place(point)
        said = f"<title>{escape(panel.says[number])}</title>" if panel.says else ""
        yield f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{KEPT}">{said}</circle>'
    for share in panel.failed:
        x = left + WIDE * share
        yield f'<path d="M{x - 4:.1f},{top - 4}l8,8m0,-8l-8,8" stroke="{DAMAGE}" stroke-width="2"/>'
