"""Look-up tables of measured pieces: signature and lengths to milliseconds.

The file is JSON: ``{"format": "autoprune-latency-table", "version": 1, "machine": {…}, "conditions": {…}, "entries":
[{"signature": …, "stairs": [16, 1], "points": [[A, B, ms], …]}, …], "calibrations": {…}}``. The points of an entry form
a full grid. Nothing in it is code.
"""

from __future__ import annotations

import csv
import json
import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoprune import whole
from autoprune.errors import UserError
from autoprune.latency.conditions import Conditions

FORMAT, VERSION = "autoprune-latency-table", 1
COLUMNS = ("signature", "A", "B", "ms")

Lengths = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Entry:
    """The times of one signature, in milliseconds, on a grid of lengths.

    ``stairs`` is, per letter, the step of the hardware's staircase: within one step the time is that of its upper end.
    Between grid lines the time is linear. Longer is never quicker here: a time that exceeds that of a greater
    length is lowered to it, which is what the layer takes when it is padded.
    """

    signature: str
    points: Mapping[Lengths, float]
    stairs: Lengths = ()

    def __post_init__(self) -> None:
        letters = {len(lengths) for lengths in self.points}
        if len(letters) != 1 or max(letters) > 2:
            raise UserError(f"latency table, {self.signature}: every point needs the same one or two lengths, or none")
        if self.stairs and (len(self.stairs) not in letters or min(self.stairs) < 1):
            raise UserError(f"latency table, {self.signature}: stairs {list(self.stairs)} are not one step per length")
        for lengths, ms in self.points.items():
            if min(lengths, default=0) < 0:
                raise UserError(f"latency table, {self.signature} at {_named(lengths)}: no length is negative")
            if not (math.isfinite(ms) and ms > 0):
                raise UserError(
                    f"latency table, {self.signature} at {_named(lengths)}: {ms} ms is no positive time; "
                    "measure it again"
                )
        for lengths in self._wanted():
            if lengths not in self.points:
                raise UserError(
                    f"latency table, {self.signature}: the point {_named(lengths)} is missing; the points of a "
                    "signature form a full grid: measure it, or remove the others of its line"
                )
        if not self.stairs:
            object.__setattr__(self, "stairs", (1,) * letters.pop())

    @cached_property
    def axes(self) -> tuple[list[int], ...]:
        """Per letter: the lengths of the grid, ascending."""
        return tuple(sorted(set(lengths)) for lengths in zip(*self.points, strict=True))

    def _wanted(self) -> Iterable[Lengths]:
        grid: list[Lengths] = [()]
        for axis in self.axes:
            grid = [(*lengths, length) for lengths in grid for length in axis]
        return grid

    @cached_property
    def grid(self) -> NDArray[np.float64]:
        """Times over the axes, none above that of a greater length."""
        times = np.array([self.points[lengths] for lengths in self._wanted()])
        times = times.reshape([len(axis) for axis in self.axes])
        for axis in range(times.ndim):
            times = np.flip(np.minimum.accumulate(np.flip(times, axis), axis), axis)
        return times

    def __call__(self, lengths: Lengths) -> float:
        """Milliseconds at any lengths up to the largest of the grid."""
        times = self.grid
        for axis, stair, length in zip(self.axes, self.stairs, lengths, strict=True):
            if length > axis[-1]:
                raise UserError(
                    f"latency table, {self.signature}: it ends at {axis[-1]}, the network needs {length}; build it on"
                )
            length = min(-(-length // stair) * stair, axis[-1])
            at = bisect_left(axis, length)
            if at == 0 or axis[at] == length:
                times = times[at]
            else:
                share = (length - axis[at - 1]) / (axis[at] - axis[at - 1])
                times = times[at - 1] * (1 - share) + times[at] * share
        return float(times)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready record."""
        points = [[*lengths, ms] for lengths, ms in sorted(self.points.items())]
        return {"signature": self.signature, "stairs": list(self.stairs), "points": points}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Entry:
        """Read a record of :meth:`to_dict`."""
        try:
            points = {tuple(index(n) for n in point[:-1]): float(point[-1]) for point in record["points"]}
            return cls(str(record["signature"]), points, tuple(index(n) for n in record.get("stairs", ())))
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"latency table: an entry cannot be read ({type(error).__name__}: {error})") from error


def _named(lengths: Lengths) -> str:
    return ", ".join(f"{letter}={length}" for letter, length in zip("AB", lengths, strict=False)) or "its only point"


@dataclass(frozen=True, eq=False)
class Table:
    """Entries by signature, and under which conditions on which machine they were measured.

    ``calibrations`` are, by :func:`autoprune.latency.calibrate.correction_key`, what whole networks taught (see
    :mod:`autoprune.latency.calibrate`).
    """

    conditions: Conditions
    machine: Mapping[str, str]
    entries: Mapping[str, Entry]
    calibrations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def missing(self, signatures: Iterable[str]) -> list[str]:
        """Those that have no entry."""
        return [signature for signature in dict.fromkeys(signatures) if signature not in self.entries]

    def merged(self, other: Table) -> Table:
        """Both tables in one; where they overlap, ``other`` decides. What was fitted to replaced entries is dropped."""
        if other.conditions != self.conditions:
            raise UserError(
                f"tables of other conditions do not mix: {self.conditions} and {other.conditions}; keep them apart"
            )
        if self.machine.get("name") != other.machine.get("name"):
            raise UserError(
                f"tables of two machines do not mix: {self.machine.get('name')} and {other.machine.get('name')}; keep "
                "them apart, or name the machine of a .csv with --machine"
            )
        calibrations = dict(other.calibrations if set(self.entries) & set(other.entries) else self.calibrations)
        calibrations |= other.calibrations
        return Table(self.conditions, self.machine, {**self.entries, **other.entries}, calibrations)

    def differs(self, conditions: Conditions, machine: Mapping[str, str]) -> str | None:
        """How these differ from what the table was made for, in words."""
        here, there = conditions.to_dict(), self.conditions.to_dict()
        found = [f"{key} {there[key]}, not {here[key]}" for key in here if here[key] != there[key]]
        if machine["name"] != self.machine.get("name", machine["name"]):
            found.append(f"{self.machine['name']}, not {machine['name']}")
        return f"the latency table was made for {'; '.join(found)}" if found else None

    def save(self, path: Path | str) -> None:
        """Write the table, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "format": FORMAT,
            "version": VERSION,
            "machine": dict(self.machine),
            "conditions": self.conditions.to_dict(),
            "entries": [entry.to_dict() for entry in self.entries.values()],
            "calibrations": dict(self.calibrations),
        }
        whole.write(path, json.dumps(record, indent=1))

    @classmethod
    def load(cls, path: Path | str) -> Table:
        """Read a table that :meth:`save` wrote."""
        path = Path(path)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(
                f"there is no latency table {path}: `autoprune latency build --out {path}` makes one"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"latency table {path} is no JSON: {error}") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise UserError(f"{path} is no latency table: its format is not {FORMAT!r}")
        if record.get("version") != VERSION:
            raise UserError(f"latency table {path} has version {record.get('version')!r}, this program reads {VERSION}")
        for key, kind in (("entries", list), ("conditions", dict), ("machine", dict), ("calibrations", dict)):
            if not isinstance(record.get(key, kind()), kind):
                raise UserError(f"latency table {path}: {key} is a {type(record[key]).__name__}, not a {kind.__name__}")
        try:
            entries = [Entry.from_dict(entry) for entry in record.get("entries", [])]
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return cls(
            Conditions.from_dict(record.get("conditions", {})),
            {str(key): str(value) for key, value in record.get("machine", {}).items()},
            {entry.signature: entry for entry in entries},
            record.get("calibrations", {}),
        )


def read_csv(path: Path | str) -> list[Entry]:
    """Entries from a table measured elsewhere, with the columns signature, A, B and ms; unused lengths are empty."""
    found: dict[str, dict[Lengths, float]] = {}
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        absent = [name for name in ("signature", "ms") if name not in (rows.fieldnames or ())]
        if absent:
            raise UserError(f"{path}: column {absent[0]!r} is missing; the columns are {', '.join(COLUMNS)}")
        for number, row in enumerate(rows, 2):
            try:
                lengths = tuple(int(row[letter]) for letter in ("A", "B") if row.get(letter))
                found.setdefault(row["signature"], {})[lengths] = float(row["ms"])
            except (TypeError, ValueError):
                raise UserError(f"{path}, line {number}: lengths are whole numbers and ms a number: {row}") from None
    return [Entry(signature, points) for signature, points in found.items()]


def write_csv(rows: Sequence[tuple[str, Lengths, float | None]], path: Path | str) -> None:
    """Signatures and lengths, with the times where they are known: what to measure elsewhere, or to look at."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for signature, lengths, ms in rows:
            table.writerow([signature, *lengths, *("",) * (2 - len(lengths)), "" if ms is None else ms])
