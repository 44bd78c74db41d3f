"""The picture of a scheme: kept channels per group, as one SVG without any library."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

ROW, GAP, LABEL, BAR, MARGIN = 18, 4, 210, 420, 14
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
