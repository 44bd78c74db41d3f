"""Pictures as SVG, without any library: the kept channels of a scheme, and curves over trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

ROW, GAP, LABEL, BAR, MARGIN = 18, 4, 210, 420, 14
WIDE, HIGH, LEFT, LEGEND = 640, 320, 64, 240
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1b1f24", "#999999")  # Okabe and Ito
DASHES = ("none", "7 3", "2 2", "9 3 2 3")
KEPT, CUT, INK, QUIET = "#0072b2", "#d9dee3", "#1b1f24", "#57606a"  # blue on grey: safe for colour-blind eyes


def widths(space: SearchSpace, scheme: Scheme, title: str, notes: Sequence[str] = ()) -> str:
    """Horizontal bars: the dense width in grey, what is kept in blue, one row per group in forward order."""
    widest = max(group.width for group in space.groups)
    top = MARGIN + 24 + 18 * len(notes)
    height = top + len(space) * (ROW + GAP) + MARGIN
    width = LABEL + BAR + 110
    parts = opening(width, height, title, notes)
    for row, (group, kept) in enumerate(zip(space.groups, scheme.kept, strict=True)):
        y = top + row * (ROW + GAP)
        full, part = BAR * group.width / widest, BAR * kept / widest
        text = y + ROW - 5
        parts += [
            f'<text x="{LABEL - 8}" y="{text}" text-anchor="end">{escape(short(group.name))}</text>',
            f'<rect x="{LABEL}" y="{y}" width="{full:.1f}" height="{ROW}" rx="2" fill="{CUT}"/>',
            f'<rect x="{LABEL}" y="{y}" width="{part:.1f}" height="{ROW}" rx="2" fill="{KEPT}"/>',
            f'<text x="{LABEL + full + 6:.1f}" y="{text}" fill="{QUIET}">{kept} of {group.width}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def opening(width: int, height: int, title: str, notes: Sequence[str]) -> list[str]:
    """How every picture begins: a white ground, the title, a line per note."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"',
        f'role="img" font-family="system-ui, sans-serif" font-size="12" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="{MARGIN + 10}" font-size="15" font-weight="600">{escape(title)}</text>',
    ]
    for number, note in enumerate(notes):
        parts.append(f'<text x="{MARGIN}" y="{MARGIN + 30 + 18 * number}" fill="{QUIET}">{escape(note)}</text>')
    return parts


def short(name: str, limit: int = 32) -> str:
    """The end of a long name says more than its beginning."""
    return name if len(name) <= limit else f"…{name[-limit + 1 :]}"


Line = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Where the points of a line lie, ascending from 0, and its values: one row per seed."""


def curves(lines: Mapping[str, Line], title: str, across: str, note: str) -> str:
    """One line per name: the median of its rows, in a band from the lowest to the highest.

    Values that are not finite leave a gap at the beginning. The vertical axis spans the medians.
    """
    longest = max(float(at[-1]) for at, _ in lines.values()) or 1.0
    medians = {name: np.median(rows, axis=0) for name, (_, rows) in lines.items()}
    finite = np.concatenate([median[np.isfinite(median)] for median in medians.values()])
    low, high = float(finite.min()), float(finite.max())
    room = 0.05 * (high - low or 1.0)
    low, high, top = low - room, high + room, MARGIN + 52

    def x(at: float) -> float:
        return LEFT + WIDE * at / longest

    def y(value: float) -> float:
        return top + HIGH * float(np.clip((high - value) / (high - low), 0, 1))

    def points(places: NDArray[np.float64], values: NDArray[np.float64]) -> list[str]:
        pairs = zip(places.tolist(), values.tolist(), strict=True)
        return [f"{x(at):.1f},{y(value):.1f}" for at, value in pairs if np.isfinite(value)]

    width, height = LEFT + WIDE + LEGEND, top + max(HIGH + 48, 20 * len(lines) + MARGIN)
    parts = [*opening(width, height, title, [note]), *_grid((low, high), longest, top, across)]
    for number, (name, (places, rows)) in enumerate(lines.items()):
        colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
        band = " ".join([*points(places, rows.min(axis=0)), *reversed(points(places, rows.max(axis=0)))])
        line, entry = " ".join(points(places, medians[name])), top + 12 + 20 * number
        stroke = f'stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
        parts += [
            f'<polygon points="{band}" fill="{colour}" opacity="0.15"/>',
            f'<polyline points="{line}" fill="none" {stroke}/>',
            f'<line x1="{LEFT + WIDE + 12}" x2="{LEFT + WIDE + 40}" y1="{entry - 4}" y2="{entry - 4}" {stroke}/>',
            f'<text x="{LEFT + WIDE + 46}" y="{entry}">{escape(name)}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def _grid(span: tuple[float, float], last: float, top: int, across: str) -> list[str]:
    """Lines and numbers up a picture from ``span[0]`` to ``span[1]``, numbers along it from 0 to ``last``."""
    parts = [f'<text x="{LEFT + WIDE / 2}" y="{top + HIGH + 38}" text-anchor="middle">{escape(across)}</text>']
    for tick, y in zip(np.linspace(*span, 5).tolist(), np.linspace(top + HIGH, top, 5).tolist(), strict=True):
        parts += [
            f'<line x1="{LEFT}" x2="{LEFT + WIDE}" y1="{y:.1f}" y2="{y:.1f}" stroke="{CUT}"/>',
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.3g}</text>',
        ]
    for at, x in zip(np.linspace(0, last, 5).tolist(), np.linspace(LEFT, LEFT + WIDE, 5).tolist(), strict=True):
        parts.append(f'<text x="{x:.1f}" y="{top + HIGH + 18}" text-anchor="middle">{at:.4g}</text>')
    return parts


def scatter(
    front: NDArray[np.float64], others: NDArray[np.float64], title: str, axes: tuple[str, str], note: str = ""
) -> str:
    """Dots at (across, up), one a row: ``front`` in blue and numbered from 0, ``others`` in grey.

    ``axes`` are the words along and up the side.
    """
    dots = np.concatenate([front, others])
    low, high = dots.min(axis=0), dots.max(axis=0)
    room = 0.05 * np.where(high > low, high - low, 1.0)
    low, high, top = low - room, high + room, MARGIN + 52

    def x(across: float) -> float:
        return LEFT + WIDE * float((across - low[0]) / (high[0] - low[0]))

    def y(up: float) -> float:
        return top + HIGH * float((high[1] - up) / (high[1] - low[1]))

    width, height = LEFT + WIDE + MARGIN, top + HIGH + 48
    parts = [
        *opening(width, height, title, [note]),
        f'<text x="{LEFT}" y="{top - 6}" text-anchor="middle">{escape(axes[1])}</text>',
        f'<text x="{LEFT + WIDE / 2}" y="{top + HIGH + 38}" text-anchor="middle">{escape(axes[0])}</text>',
    ]
    for across, up in np.linspace(low, high, 5).tolist():
        parts += [
            f'<line x1="{LEFT}" x2="{LEFT + WIDE}" y1="{y(up):.1f}" y2="{y(up):.1f}" stroke="{CUT}"/>',
            f'<text x="{LEFT - 6}" y="{y(up) + 4:.1f}" text-anchor="end">{up:.3g}</text>',
            f'<text x="{x(across):.1f}" y="{top + HIGH + 18}" text-anchor="middle">{across:.3g}</text>',
        ]
    parts += [f'<circle cx="{x(across):.1f}" cy="{y(up):.1f}" r="3" fill="{CUT}"/>' for across, up in others.tolist()]
    for number, (across, up) in enumerate(front.tolist()):
        parts += [
            f'<circle cx="{x(across):.1f}" cy="{y(up):.1f}" r="4" fill="{KEPT}"/>',
            f'<text x="{x(across):.1f}" y="{y(up) - 7:.1f}" font-size="9" text-anchor="middle">{number}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])


def history(points: Sequence[tuple[float, float, bool]], title: str) -> str:
    """Dots of (trial, reward, counts): in blue those that count, in grey the others; a line follows the best so far.

    Each dot says its numbers, and can be reached by keyboard. The vertical axis spans the middle of what counts: what
    lies far below is drawn at its foot.
    """
    last = max(at for at, _, _ in points) or 1.0
    counted = np.array([reward for _, reward, counts in points if counts] or [reward for _, reward, _ in points])
    high, low = float(counted.max()), float(np.quantile(counted, 0.1))
    room = 0.08 * (high - low or 1.0)
    low, high, top = low - room, high + room, MARGIN + 52

    def x(at: float) -> float:
        return LEFT + WIDE * at / last

    def y(reward: float) -> float:
        return top + HIGH * float(np.clip((high - reward) / (high - low), 0, 1))

    opened = opening(LEFT + WIDE + MARGIN, top + HIGH + 48, title, ["blue is affordable; grey is not, or a quick look"])
    parts = [*opened, *_grid((low, high), last, top, "trials")]
    best = -np.inf
    steps: list[str] = []
    for at, reward, counts in points:
        if counts and reward > best:
            steps += [f"{x(at):.1f},{y(best):.1f}"] if steps else []
            best = reward
            steps.append(f"{x(at):.1f},{y(best):.1f}")
    if steps:
        steps.append(f"{x(last):.1f},{y(best):.1f}")
        parts.append(f'<polyline points="{" ".join(steps)}" fill="none" stroke="{COLOURS[1]}" stroke-width="2"/>')
    for at, reward, counts in points:
        told = f"trial {at:.4g}: reward {reward:.4f}{'' if counts else ', does not count'}"
        parts.append(
            f'<circle cx="{x(at):.1f}" cy="{y(reward):.1f}" r="4" fill="{KEPT if counts else CUT}" tabindex="0" '
            f'aria-label="{escape(told)}"/>'
        )
    return "\n".join([*parts, "</svg>", ""])
