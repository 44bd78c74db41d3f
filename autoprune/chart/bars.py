"""What every layer keeps, as horizontal bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from autoprune.chart.ink import COLOURS, CUT, KEPT, MARGIN, QUIET, opening, shape, short
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

ROW, GAP, LABEL, BAR = 18, 4, 210, 420
WIDTH = LABEL + BAR + 110


@dataclass(frozen=True)
class Bar:
    """A row: its name, its dense width, and how much of it each of several schemes keeps."""

    name: str
    width: int
    kept: tuple[int, ...]


def widths(space: SearchSpace, scheme: Scheme, title: str, notes: Sequence[str] = ()) -> str:
    """The dense width in grey, what is kept in blue, one row per group in forward order."""
    rows = [Bar(group.name, group.width, (kept,)) for group, kept in zip(space.groups, scheme.kept, strict=True)]
    return bars(rows, ("kept",), title, notes)


def bars(
    rows: Sequence[Bar], names: Sequence[str], title: str, notes: Sequence[str] = (), *, shares: bool = False
) -> str:
    """The dense width in grey and what the first scheme keeps in blue; the others are markers on it.

    ``names`` are those of the schemes, and make a legend where there are several. With ``shares`` all rows are equally
    long, so that they compare in the share that they keep.
    """
    widest = max((row.width for row in rows), default=1)
    several = len(names) > 1
    top = MARGIN + 24 + 18 * len(notes) + (20 * ((len(names) + 1) // 2) + 12 if several else 0)
    parts = opening(WIDTH, top + len(rows) * (ROW + GAP) + MARGIN, title, notes)
    if several:
        parts += _legend(names, top - 20 * ((len(names) + 1) // 2) + 2)
    for number, row in enumerate(rows):
        parts += _row(row, names, top + number * (ROW + GAP), BAR / (row.width if shares else widest), shares=shares)
    return "\n".join([*parts, "</svg>", ""])


def _row(row: Bar, names: Sequence[str], y: int, scale: float, *, shares: bool) -> Iterator[str]:
    full, text = scale * row.width, y + ROW - 5
    each = ", ".join(f"{name} {kept:,}" for name, kept in zip(names, row.kept, strict=True))
    told = f"{row.kept[0] / row.width:.1%}" if shares else f"{row.kept[0]} of {row.width}"
    yield f'<g class="mark"><title>{escape(f"{row.name}: {each} of {row.width:,}")}</title>'
    yield f'<text x="{LABEL - 8}" y="{text}" text-anchor="end">{escape(short(row.name, 26))}</text>'
    yield f'<rect x="{LABEL}" y="{y}" width="{full:.1f}" height="{ROW}" rx="2" fill="{CUT}"/>'
    for number, kept in enumerate(row.kept):
        place = scale * kept
        if number == 0:
            drawn = f'<rect x="{LABEL}" y="{y}" width="{place:.1f}" height="{ROW}" rx="2" fill="{KEPT}"/>'
        else:
            drawn = _marker(number, LABEL + place, y + ROW / 2)
        yield drawn if len(names) == 1 else f'<g data-series="{number}">{drawn}</g>'
    yield f'<text x="{LABEL + full + 6:.1f}" y="{text}" fill="{QUIET}">{told}</text></g>'


def _marker(number: int, x: float, y: float) -> str:
    """A shape of the scheme's own; its white edge sets it off from the bar."""
    outline, colour = shape(number - 1, 9 if (number - 1) % 4 == 0 else 5), COLOURS[number % len(COLOURS)]
    return (
        f'<path transform="translate({x:.1f} {y:.1f})" d="{outline}" fill="{colour}" stroke="#ffffff" '
        'stroke-width="0.8"/>'
    )


def _legend(names: Sequence[str], top: int) -> Iterator[str]:
    for number, name in enumerate(names):
        x, y = MARGIN + WIDTH // 2 * (number % 2), top + 20 * (number // 2)
        square = f'<rect x="{x}" y="{y - 9}" width="12" height="12" rx="2" fill="{KEPT}"/>'
        sign = _marker(number, x + 6, y - 3) if number else square
        text = f'<text x="{x + 20}" y="{y + 1}">{escape(short(name, 34))}</text>'
        yield f'<g class="key" data-key="{number}">{sign}{text}</g>'
