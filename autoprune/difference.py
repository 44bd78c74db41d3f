"""Two schemes side by side: which groups keep more in one than in the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from autoprune.chart import BAR, COLOURS, CUT, GAP, LABEL, MARGIN, QUIET, ROW, opening, short
from autoprune.errors import UserError
from autoprune.exporters import scheme_file

FIRST, SECOND = COLOURS[:2]  # blue and vermilion


@dataclass(frozen=True)
class Row:
    """A group: its dense width, and what either scheme keeps of it."""

    name: str
    width: int
    first: int
    second: int


@dataclass(frozen=True)
class Difference:
    """Two schemes of the same groups. ``costs`` are, by name, what either costs, as far as their files say."""

    names: tuple[str, str]
    rows: tuple[Row, ...]
    costs: Mapping[str, tuple[float, float]]
    noun: str = "channels"

    @property
    def moved(self) -> int:
        """Channels, or weights, that one scheme keeps more of than the other, summed over groups."""
        return sum(abs(row.first - row.second) for row in self.rows)

    def chart(self) -> str:
        """Two bars a group, as SVG: the first scheme in blue, the second in vermilion, the dense width in grey."""
        widest = max(row.width for row in self.rows)
        top = MARGIN + 24 + 18
        height = top + len(self.rows) * (ROW + GAP) + MARGIN
        title, note = f"{self.names[0]} and {self.names[1]}", f"blue is {self.names[0]}, vermilion {self.names[1]}"
        parts = opening(LABEL + BAR + 170, height, title, [note])
        for number, row in enumerate(self.rows):
            y = top + number * (ROW + GAP)
            full, *kept = (BAR * count / widest for count in (row.width, row.first, row.second))
            text = y + ROW - 5
            half = ROW / 2
            parts += [
                f'<text x="{LABEL - 8}" y="{text}" text-anchor="end">{escape(short(row.name))}</text>',
                f'<rect x="{LABEL}" y="{y}" width="{full:.1f}" height="{ROW}" rx="2" fill="{CUT}"/>',
                f'<rect x="{LABEL}" y="{y}" width="{kept[0]:.1f}" height="{half}" fill="{FIRST}"/>',
                f'<rect x="{LABEL}" y="{y + half}" width="{kept[1]:.1f}" height="{half}" fill="{SECOND}"/>',
                (
                    f'<text x="{LABEL + full + 6:.1f}" y="{text}" fill="{QUIET}">'
                    f"{row.first} and {row.second} of {row.width}</text>"
                ),
            ]
        return "\n".join([*parts, "</svg>", ""])

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        rows = [{"name": r.name, "width": r.width, "first": r.first, "second": r.second} for r in self.rows]
        return {"names": list(self.names), "groups": rows, "moved": self.moved, "costs": dict(self.costs)}


def compare_files(first: Path, second: Path) -> Difference:
    """The difference of two scheme files, which must be of the same groups."""
    one, two = scheme_file.parse(first), scheme_file.parse(second)
    entries = {entry["name"]: entry for entry in two["groups"]}
    names = [entry["name"] for entry in one["groups"]]
    for name in (*names, *entries):
        if name not in entries or name not in names:
            there, here = (first, second) if name in names else (second, first)
            raise UserError(f"group {name} is in {there} and not in {here}: schemes of two networks do not compare")
    kinds = [record.get("granularity") for record in (one, two)]
    if kinds[0] != kinds[1]:
        raise UserError(f"{first} removes by {kinds[0]}, {second} by {kinds[1]}: such schemes do not compare")
    noun = "channels" if kinds[0] == "channel" else "weights"
    original = f"original_{noun}"
    rows = []
    for entry in one["groups"]:
        other = entries[entry["name"]]
        if entry.get(original) != other.get(original):
            raise UserError(
                f"group {entry['name']} has {entry.get(original)} {noun} in {first} and "
                f"{other.get(original)} in {second}: schemes of two networks do not compare"
            )
        counts = (_whole(entry, original, first), _whole(entry, f"kept_{noun}", first))
        rows.append(Row(entry["name"], *counts, _whole(other, f"kept_{noun}", second)))
    costs = [dict((record.get("costs") or {}).get("kept") or {}) for record in (one, two)]
    both = {name: (costs[0][name], costs[1][name]) for name in costs[0] if name in costs[1]}
    return Difference(_told_apart(first, second), tuple(rows), both, noun)


def _whole(entry: Mapping[str, Any], key: str, path: Path) -> int:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{path}, group {entry['name']}: {key} is {value!r}, a whole number of at least 1 is needed")
    return value


def _told_apart(first: Path, second: Path) -> tuple[str, str]:
    """Short names: files of two runs are both called scheme.json."""
    if first.name == second.name and first.parent.name != second.parent.name:
        return first.parent.name, second.parent.name
    return (first.name, second.name) if first.name != second.name else (str(first), str(second))
