"""Rates written by hand: patterns of group names, and how much of each is kept."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.paths import existing
from autoprune.references import close
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.space import Rates, SearchSpace

REMOVED = {"kept": False, "kept_rate": False, "removed": True, "removed_rate": True}
"""The columns that may hold rates, and whether these say what goes."""
Line = tuple[str, str, float]
"""Where it stands, the pattern, and the kept rate."""


def hand(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    file: str | None = None,
    fit: bool = False,
) -> Proposals:
    """One scheme: the rates in a file. The seed plays no part.

    ``file`` must be given. A table (any name but ``.json``) has the columns ``pattern`` and one of ``kept`` and
    ``removed``, fractions of a group's channels; a ``.json`` file maps patterns to kept rates. A pattern is a
    group's name, in which ``*`` stands for any text, ``?`` for one character and ``[…]`` for one of those listed. Of
    several lines that fit a group the last one holds; a group that none fits stays whole.

    Every rate becomes the nearest legal count, and a scheme over the budget is refused. With ``fit`` all rates, also
    those of the groups that are not listed, are scaled by one factor so that the scheme uses the budget up.
    """
    if not file:
        raise UserError("hand needs file=…, a table with the columns pattern and kept, or JSON {pattern: kept rate}")
    budget.check()
    rates = _rates(existing(file), space)
    if fit:
        yield [budget.fit(rates)]
        return
    scheme = _nearest(space, rates)
    for name, cap in budget.caps.items():
        cost = budget.costs[name](scheme)
        if not budget.allows(scheme) and cost > cap:
            raise UserError(
                f"{file}: the scheme has {name}={cost:.6g}, {cost / cap - 1:.2%} over the budget of {cap:.6g}; "
                "lower its rates, raise the budget, or scale it with fit=true"
            )
    yield [scheme]


def _rates(path: Path, space: SearchSpace) -> Rates:
    """The kept rate of every group."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}): a table or JSON is expected") from None
    rates = np.ones(len(space))
    names = [group.name for group in space.groups]
    for where, pattern, rate in (_entries if path.suffix.lower() == ".json" else _rows)(text, path):
        matched = [g for g, name in enumerate(names) if name == pattern or fnmatchcase(name, pattern)]
        if not matched:
            raise UserError(
                f"{where}: {pattern!r} names no group{close(pattern, names)}; `autoprune groups` lists them"
            )
        rates[matched] = rate
    return rates


def _rows(text: str, path: Path) -> Iterator[Line]:
    """The lines of a table."""
    rows = csv.DictReader(io.StringIO(text), restval="", skipinitialspace=True)
    header = [str(name).strip() for name in rows.fieldnames or ()]
    columns = [name for name in header if name in REMOVED]
    if "pattern" not in header or len(columns) != 1:
        raise UserError(f"{path}: the header is {','.join(header)!r}, it must name pattern and one of kept and removed")
    for row in rows:
        cells = {str(name).strip(): str(cell).strip() for name, cell in row.items()}
        where = f"{path}, line {rows.line_num}"
        yield where, cells["pattern"], _rate(cells[columns[0]], where, columns[0])


def _entries(text: str, path: Path) -> Iterator[Line]:
    """The entries of a JSON object, also those that a later one of the same name would hide."""
    try:
        entries = json.loads(text, object_pairs_hook=tuple)
    except ValueError as error:
        raise UserError(f'{path} is not JSON ({error}): write it like {{"conv*": 0.5}}') from None
    if not isinstance(entries, tuple):
        raise UserError(f'{path} holds no JSON object: write it like {{"conv*": 0.5}}')
    for pattern, rate in entries:
        where = f"{path}, {pattern!r}"
        yield where, pattern, _rate(rate if type(rate) in (int, float) else repr(rate), where, "kept")


def _rate(value: str | float, where: str, column: str) -> float:
    """The kept rate that a cell means."""
    removed = REMOVED[column]
    try:
        rate = float(value)
    except (ValueError, OverflowError):
        rate = math.nan
    if not (0 <= rate < 1 if removed else 0 < rate <= 1):
        valid = "at least 0 and below 1" if removed else "above 0 and at most 1"
        raise UserError(f"{where}: {column} = {value} is not a fraction {valid} of a group's channels")
    return 1 - rate if removed else rate


def _nearest(space: SearchSpace, rates: Rates) -> Scheme:
    """Every rate at its nearest legal count, the larger of two that are equally near."""
    kept = (
        min(reversed(group.counts), key=lambda count: abs(count - rate * group.width))
        for group, rate in zip(space.groups, rates, strict=True)
    )
    return Scheme(tuple(kept), space.granularity)
