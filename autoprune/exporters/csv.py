"""Comma-separated values, for spreadsheets and for schemes written by hand.

The header says what the numbers mean. ``kept`` and ``removed`` hold channels, whole numbers; ``kept_rate`` and
``removed_rate`` hold fractions of the group's channels, of which the nearest legal count is taken.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from autoprune.errors import UserError
from autoprune.paths import existing
from autoprune.references import close
from autoprune.scheme import Scheme
from autoprune.space import Group, SearchSpace

COUNTS = ("kept", "removed")
RATES = ("kept_rate", "removed_rate")


def export(scheme: Scheme, space: SearchSpace, model: object = None) -> str:
    """One line per group: ``group,original,kept,kept_rate``; the rate is there for the eye. The model is not needed."""
    space.check(scheme)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["group", "original", "kept", "kept_rate"])
    for group, count in zip(space.groups, scheme.kept, strict=True):
        writer.writerow([group.name, group.width, count, f"{count / group.width:.4f}"])
    return file.getvalue()


def read(source: str | Path, space: SearchSpace) -> Scheme:
    """The scheme in a table, given as its path or its text; a group that is not listed stays whole.

    The columns are ``group`` and one of ``kept``, ``removed``, ``kept_rate``, ``removed_rate``. Where a column of
    channels is present, rates beside it are ignored; ``original``, if present, must be the width found here.
    """
    rows = csv.DictReader(io.StringIO(_content(source)), restval="", skipinitialspace=True)
    column = _column([str(name).strip() for name in rows.fieldnames or ()])
    known = {group.name: position for position, group in enumerate(space.groups)}
    kept = list(space.dense.kept)
    seen = set()
    for row in rows:
        cells = {str(name).strip(): str(cell).strip() for name, cell in row.items()}
        name = cells["group"]
        if name not in known:
            raise UserError(f"line {rows.line_num}: no group is called {name!r}{close(name, list(known))}")
        if name in seen:
            raise UserError(f"line {rows.line_num}: group {name} is listed a second time")
        seen.add(name)
        group = space.groups[known[name]]
        if cells.get("original", "") not in {"", str(group.width)}:
            raise UserError(
                f"the table was made for another model: group {name} has {group.width} channels here, "
                f"{cells['original']} in the table"
            )
        kept[known[name]] = _count(cells, column, group)
    for group, count in zip(space.groups, kept, strict=True):
        if count < 1:
            raise UserError(f"group {group.name}: {count} channels would be left of {group.width}, at least 1 stays")
    scheme = Scheme(tuple(kept), space.granularity)
    space.check(scheme)
    return scheme


def _content(source: str | Path) -> str:
    if isinstance(source, str) and "\n" in source:
        return source
    path = existing(source)
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}): a table is expected") from None


def _column(header: list[str]) -> str:
    """The column that counts."""
    found = [name for name in COUNTS if name in header] or [name for name in RATES if name in header]
    if "group" not in header or not found:
        wanted = ", ".join((*COUNTS, *RATES))
        raise UserError(f"the table's header is {','.join(header)!r}: it needs group and one of {wanted}")
    if len(found) > 1:
        raise UserError(f"the table has both {found[0]} and {found[1]}: leave one of them")
    return found[0]


def _count(cells: Mapping[str, str], column: str, group: Group) -> int:
    text = cells[column]
    if column in COUNTS:
        if not text.isdecimal():
            raise UserError(
                f"group {group.name}: {column} = {text!r} is not a number of channels; fractions go under {column}_rate"
            )
        return int(text) if column == "kept" else group.width - int(text)
    try:
        rate = float(text)
    except ValueError:
        rate = -1.0
    if column == "removed_rate":
        rate = 1 - rate
    if not 0 < rate <= 1:
        valid = "above 0 and at most 1" if column == "kept_rate" else "at least 0 and below 1"
        raise UserError(f"group {group.name}: {column} = {text!r} is not a fraction {valid}")
    return min(group.counts, key=lambda count: abs(count - rate * group.width))
