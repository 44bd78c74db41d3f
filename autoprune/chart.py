"""Pictures as SVG, without any library: the kept channels of a scheme, and curves over trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

ROW, GAP, LABEL, BAR, MARGIN = 18, 4, 210, 420, 14
WIDE, HIGH, LEFT, LEGEND = 640, 320, 64, 150
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1b1f24", "#999999")  # Okabe and Ito
DASHES = ("none", "7 3", "2 2", "9 3 2 3")
KEPT, CUT, INK, QUIET = "#0072b2", "#d9dee3", "#1b1f24", "#57606a"  # blue on grey: safe for colour-blind eyes


def widths(space: SearchSpace, scheme: Scheme, title: str, notes: Sequence[str] = ()) -> str:
    """Horizontal bars: the dense width in grey, what is kept in blue, one row per group in forward order."""
    widest = max(group.width for group in space.groups)
    top = MARGIN + 24 + 18 * len(notes)
    height = top + len(space) * (ROW + GAP) + MARGIN
    width = LABEL + BAR + 110
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"',
        f'role="img" font-family="system-ui, sans-serif" font-size="12" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="{MARGIN + 10}" font-size="15" font-weight="600">{escape(title)}</text>',
    ]
    for number, note in enumerate(notes):
        parts.append(f'<text x="{MARGIN}" y="{MARGIN + 30 + 18 * number}" fill="{QUIET}">{escape(note)}</text>')
    for row, (group, kept) in enumerate(zip(space.groups, scheme.kept, strict=True)):
        y = top + row * (ROW + GAP)
        full, part = BAR * group.width / widest, BAR * kept / widest
        text = y + ROW - 5
        parts += [
            f'<text x="{LABEL - 8}" y="{text}" text-anchor="end">{escape(_short(group.name))}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{full:.1f}" height="{ROW}" rx="2" fill="{CUT}"/>',
            f'<rect x="{LABEL}" y="{y}" width="{part:.1f}" height="{ROW}" rx="2" fill="{KEPT}"/>',
            f'<text x="{LABEL + full + 6:.1f}" y="{text}" fill="{QUIET}">{kept} of {group.width}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _short(name: str, limit: int = 32) -> str:
    """The end of a long name says more than its beginning."""
    return name if len(name) <= limit else f"…{name[-limit + 1 :]}"


def curves(lines: Mapping[str, NDArray[np.float64]], title: str, across: str, note: str) -> str:
    """One line per name: the median of its rows (one row per seed), in a band from the lowest to the highest.

    Values that are not finite leave a gap at the beginning. The vertical axis spans the medians.
    """
    longest = max(int(rows.shape[1]) for rows in lines.values())
    medians = {name: np.median(rows, axis=0) for name, rows in lines.items()}
    finite = np.concatenate([median[np.isfinite(median)] for median in medians.values()])
    low, high = float(finite.min()), float(finite.max())
    room = 0.05 * (high - low or 1.0)
    low, high, top = low - room, high + room, MARGIN + 52

    def x(at: int) -> float:
        return LEFT + WIDE * at / max(longest - 1, 1)

    def y(value: float) -> float:
        return top + HIGH * float(np.clip((high - value) / (high - low), 0, 1))

    def points(values: NDArray[np.float64]) -> list[str]:
        return [f"{x(at):.1f},{y(float(v)):.1f}" for at, v in enumerate(values) if np.isfinite(v)]

    width, height = LEFT + WIDE + LEGEND, top + HIGH + 48
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"',
        f'role="img" font-family="system-ui, sans-serif" font-size="12" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="{MARGIN + 10}" font-size="15" font-weight="600">{escape(title)}</text>',
        f'<text x="{MARGIN}" y="{MARGIN + 30}" fill="{QUIET}">{escape(note)}</text>',
        f'<text x="{LEFT + WIDE / 2}" y="{top + HIGH + 38}" text-anchor="middle">{escape(across)}</text>',
    ]
    for tick in np.linspace(low, high, 5):
        parts.append(f'<line x1="{LEFT}" x2="{LEFT + WIDE}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="{CUT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.3g}</text>')
    parts += [
        f'<text x="{x(int(at)):.1f}" y="{top + HIGH + 18}" text-anchor="middle">{at}</text>'
        for at in np.unique(np.linspace(0, longest - 1, 5).round().astype(int))
    ]
    for number, (name, rows) in enumerate(lines.items()):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        band = " ".join([*points(rows.min(axis=0)), *reversed(points(rows.max(axis=0)))])
        line, entry = " ".join(points(medians[name])), top + 12 + 20 * number
        stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        parts += [
            f'<polygon points="{band}" fill="{colour}" opacity="0.15"/>',
            f'<polyline points="{line}" fill="none" {stroke}/>',
            f'<line x1="{LEFT + WIDE + 12}" x2="{LEFT + WIDE + 40}" y1="{entry - 4}" y2="{entry - 4}" {stroke}/>',
            f'<text x="{LEFT + WIDE + 46}" y="{entry}">{escape(name)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
