"""Points and lines between two axes.

What is drawn lies in an inner ``<svg class="plot">`` of :data:`WIDE` by :data:`HIGH`, whose ``data-x`` and ``data-y``
say from where to where its axes go; grid and numbers are the group ``ticks`` around it, and series and their entries in
the legend have the same number in ``data-series`` and ``data-key``. So a script can redraw a part of it larger.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from autoprune.chart.ink import COLOURS, CUT, DASHES, MARGIN, QUIET, opening, short

WIDE, HIGH, LEFT, RIGHT = 560, 320, 74, 26
ENTRY = 20  # the height of a line of the legend
TICKS = 5

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """From where to where an axis goes, and what it is about; a ``percent`` axis is of shares."""

    label: str
    low: float
    high: float
    percent: bool = False

    @classmethod
    def around(cls, label: str, values: Sequence[float], *, percent: bool = False, room: float = 0.05) -> Axis:
        """An axis on which all values have room at both ends; one of shares ends at 0 and 1 at the latest."""
        low, high = min(values), max(values)
        extra = room * ((high - low) or abs(high) or 1.0)
        ends = (low - extra, high + extra)
        if percent:
            ends = (max(ends[0], min(low, 0.0)), min(ends[1], max(high, 1.0)))
        return cls(label, *ends, percent)

    def share(self, value: float) -> float:
        """How far along the axis a value lies, held to its ends."""
        return min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))

    def ticks(self) -> list[tuple[float, str]]:
        """Round numbers along the axis, about :data:`TICKS` of them, and how they are written."""
        scale = 100.0 if self.percent else 1.0
        low, high = scale * self.low, scale * self.high
        rough = (high - low) / TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * (1 - 1e-9))
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        found = []
        for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1):
            text = f"{number * step:.{digits}f}"
            found.append((number * step / scale, f"{text}%" if self.percent else text))
        return found


@dataclass(frozen=True)
class Dots:
    """Points, each with what it says; ``hollow`` ones are rings, and ``labels`` stand above them."""

    points: Sequence[Point]
    says: Sequence[str] = ()
    labels: Sequence[str] = ()
    radius: float = 4
    hollow: bool = False


@dataclass(frozen=True)
class Trace:
    """A line through points, or with ``filled`` the pale area that they go around."""

    points: Sequence[Point]
    filled: bool = False


@dataclass(frozen=True)
class Series:
    """What belongs together in the legend. An empty ``name`` is in none, such as a diagonal."""

    name: str
    marks: Sequence[Dots | Trace]
    colour: str = COLOURS[0]
    dash: str = DASHES[0]


def looks(number: int) -> tuple[str, str]:
    """Colour and dashes of the lines of a plot, no two of the first eight alike."""
    return COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]


def plot(title: str, across: Axis, up: Axis, series: Sequence[Series], notes: Sequence[str] = ()) -> str:
    """The series between the axes, with a legend where there are several."""
    named = [(number, one) for number, one in enumerate(series) if one.name]
    lines = (len(named) + 1) // 2 if len(named) > 1 else 0
    top = MARGIN + 26 + 18 * len(notes) + (ENTRY * lines + 8 if lines else 0) + 30
    parts = opening(LEFT + WIDE + RIGHT, top + HIGH + 50, title, notes)
    if lines:
        parts += _legend(named, top - 40 - ENTRY * (lines - 1))
    inner = f'x="{LEFT}" y="{top}" width="{WIDE}" height="{HIGH}" viewBox="0 0 {WIDE} {HIGH}" overflow="visible"'
    middle = f'x="{LEFT + WIDE / 2:g}" y="{top + HIGH + 40}" text-anchor="middle"'
    parts += [
        f'<text x="{MARGIN}" y="{top - 16}" fill="{QUIET}">{escape(up.label)}</text>',
        f'<text {middle} fill="{QUIET}">{escape(across.label)}</text>',
        '<g class="ticks">',
        *_grid(across, up, top),
        "</g>",
        f'<svg class="plot" {inner} data-x="{_span(across)}" data-y="{_span(up)}">',
    ]
    for number, one in enumerate(series):
        parts += [f'<g data-series="{number}">', *_drawn(one, across, up), "</g>"]
    return "\n".join([*parts, "</svg>", "</svg>", ""])


def _span(axis: Axis) -> str:
    return f"{axis.low!r} {axis.high!r}{' %' if axis.percent else ''}"


def _grid(across: Axis, up: Axis, top: int) -> Iterator[str]:
    for value, text in up.ticks():
        y = top + HIGH * (1 - up.share(value))
        yield f'<line x1="{LEFT}" x2="{LEFT + WIDE}" y1="{y:.1f}" y2="{y:.1f}" stroke="{CUT}"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    for value, text in across.ticks():
        x = LEFT + WIDE * across.share(value)
        yield f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top + HIGH}" y2="{top + HIGH + 5}" stroke="{QUIET}"/>'
        yield f'<text x="{x:.1f}" y="{top + HIGH + 20}" text-anchor="middle">{text}</text>'


def _drawn(series: Series, across: Axis, up: Axis) -> Iterator[str]:
    colour = series.colour

    def place(point: Point) -> tuple[str, str]:
        return f"{WIDE * across.share(point[0]):.1f}", f"{HIGH * (1 - up.share(point[1])):.1f}"

    for mark in series.marks:
        if isinstance(mark, Trace):
            points = " ".join(",".join(place(point)) for point in mark.points)
            if mark.filled:
                yield f'<polygon points="{points}" fill="{colour}" opacity="0.15"/>'
            else:
                dash = "" if series.dash == DASHES[0] else f' stroke-dasharray="{series.dash}"'
                yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
            continue
        paint = f'fill="none" stroke="{colour}" stroke-width="1.5"' if mark.hollow else f'fill="{colour}"'
        for number, point in enumerate(mark.points):
            x, y = place(point)
            said = f"<title>{escape(mark.says[number])}</title>" if mark.says else ""
            yield f'<circle class="mark" cx="{x}" cy="{y}" r="{mark.radius:g}" {paint}>{said}</circle>'
            if mark.labels:
                above = f'x="{x}" y="{float(y) - 8:.1f}" font-size="10" text-anchor="middle"'
                yield f"<text {above}>{escape(mark.labels[number])}</text>"


def _legend(named: Sequence[tuple[int, Series]], top: int) -> Iterator[str]:
    for place, (number, one) in enumerate(named):
        x, y = MARGIN + (LEFT + WIDE + RIGHT) // 2 * (place % 2), top + ENTRY * (place // 2)
        ring = any(isinstance(mark, Dots) and mark.hollow for mark in one.marks)
        if any(isinstance(mark, Trace) for mark in one.marks):
            dash = "" if one.dash == DASHES[0] else f' stroke-dasharray="{one.dash}"'
            sign = (
                f'<line x1="{x}" x2="{x + 28}" y1="{y - 4}" y2="{y - 4}" stroke="{one.colour}" stroke-width="2"{dash}/>'
            )
        else:
            paint = f'fill="none" stroke="{one.colour}" stroke-width="1.5"' if ring else f'fill="{one.colour}"'
            sign = f'<rect x="{x + 10}" y="{y - 8}" width="8" height="8" rx="4" {paint}/>'
        text = f'<text x="{x + 36}" y="{y}">{escape(short(one.name, 34))}</text>'
        yield f'<g class="key" data-key="{number}">{sign}{text}</g>'
