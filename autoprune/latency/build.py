"""Measure a look-up table for the pieces of a network, where the times bend and nowhere else."""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.errors import UserError
from autoprune.forward import Example
from autoprune.latency import stairs, stopwatch
from autoprune.latency.calibrate import calibrated
from autoprune.latency.conditions import Conditions, machine
from autoprune.latency.table import Entry, Lengths, Table
from autoprune.latency.units import Replay, Unit, spans, units
from autoprune.lines import append_records, read_records
from autoprune.operations import Operations, record
from autoprune.space import SearchSpace

REPEATS = 9
NEIGHBOURS = 33
"""Neighbouring lengths that are looked at for stairs: two steps of 16, and what begins the third."""
BENT = 0.03
"""A time this far (relative) from the straight line between its neighbours calls for a finer grid …"""
MATTERS = 0.002
"""… if it is also this share of the whole network's time."""
FINEST = 16
"""How many parts a grid is cut into at the finest: noise bends lines too, and would be followed to every length."""
TOGETHER = 2**28
"""Bytes of weights and inputs that take turns: a wide linear layer at all of its lengths would fill the memory."""

Tell = Callable[[str, Mapping[str, Any]], None]


@dataclass(eq=False)
class _Bench:
    """Measures points of signatures, and remembers them in a file as they arrive."""

    operations: Operations
    space: SearchSpace
    conditions: Conditions
    journal: Path
    tell: Tell

    def __post_init__(self) -> None:
        self.known: dict[tuple[str, Lengths], float] = {}
        told = {"conditions": self.conditions.to_dict(), "machine": machine(self.conditions.device)["name"]}
        head, *points = read_records(self.journal) or [None]
        if head is None:
            append_records(self.journal, [told])
        elif head != told:
            raise UserError(
                f"{self.journal} is of a build that was stopped, under other conditions or on another machine: "
                f"{json.dumps(head)}; finish that one, remove the file, or write another table"
            )
        for signature, lengths, ms in points:
            self.known[signature, tuple(lengths)] = float(ms)

    def __call__(self, unit: Unit, points: Iterable[Lengths], repeats: int = REPEATS) -> dict[Lengths, float]:
        """Milliseconds at each point; those not known yet are measured in turns."""
        wanted = list(dict.fromkeys(points))
        new = [lengths for lengths in wanted if (unit.signature, lengths) not in self.known]
        for several in self._portions(unit, new):
            runs = {str(lengths): run for lengths, run in several.items()}
            timings = stopwatch.measure(runs, self.conditions.clock, repeats, warm_up=2)
            # what disturbs a measurement only ever adds to it: the quartile is steadier than the median
            found = {lengths: timings[str(lengths)].low for lengths in several}
            self.known |= {(unit.signature, lengths): ms for lengths, ms in found.items()}
            append_records(self.journal, [[unit.signature, lengths, ms] for lengths, ms in found.items()])
            self.tell("points", {"unit": unit, "points": len(several)})
        return {lengths: self.known[unit.signature, lengths] for lengths in wanted}

    def _portions(self, unit: Unit, points: Iterable[Lengths]) -> Iterator[dict[Lengths, stopwatch.Run]]:
        """As many points at a time as go into memory."""
        several: dict[Lengths, stopwatch.Run] = {}
        size = 0
        for lengths in points:
            replay = self._replay(unit, lengths)
            needed = sum(tensor.nbytes for tensor in (*replay.buffers(), *replay.example))
            if several and size + needed > TOGETHER:
                yield several
                several, size = {}, 0
            placed = tuple(self.conditions.place(tensor) for tensor in replay.example)
            several[lengths] = self.conditions.run(replay, placed, own=True)
            size += needed
        if several:
            yield several

    def _replay(self, unit: Unit, lengths: Lengths) -> Replay:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Replay(unit, unit.sizes(self.operations, lengths, self.space))


def build(
    model: nn.Module,
    example: Example,
    space: SearchSpace,
    conditions: Conditions,
    path: Path | str,
    *,
    known: Table | None = None,
    operations: Operations | None = None,
    tell: Tell = lambda event, facts: None,
) -> Table:
    """A table for every scheme of ``space``, calibrated on whole networks and saved at ``path``.

    ``known`` is extended where it lacks something, and its points are not measured again; where it lacks nothing it is
    left as it is, its correction too. ``operations`` are those of the network for the conditions' batch, where they are
    recorded already. Points are kept as they are measured: a build that was stopped goes on where it was.
    ``tell(event, facts)`` hears "estimate" (``seconds``, ``points``, ``signatures``) after one point of each
    signature and before all others, and "points" and "calibrated" as it goes on.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if operations is None:
        operations = record(model, example, space, conditions.batch)
    found = units(operations)
    here = machine(conditions.device)
    table = known or Table(conditions, here, {})
    reason = table.differs(conditions, here)
    if reason:
        raise UserError(f"{reason}: its points do not go with new ones; build another table")
    ranges = spans(found, operations, space)
    sizes = operations.sizes(space.dense.kept)
    widest = {unit.signature: unit for unit in sorted(found, key=lambda unit: unit.lengths(sizes))}
    missing = table.missing(ranges)
    short = [s for s in ranges if s in table.entries and _short(table.entries[s], ranges[s])]
    wanted = {signature: widest[signature] for signature in missing + short}
    bench = _Bench(operations, space, conditions, path.with_suffix(".points.jsonl"), tell)
    for signature in short:
        entry = table.entries[signature]
        bench.known |= {(signature, lengths): ms for lengths, ms in entry.points.items()}
        if not wanted[signature].entries:
            ranges[signature] = _joined(entry, ranges[signature])
    with conditions.held(), torch.inference_mode():
        largest = {s: tuple(high for _, high, _ in ranges[s]) for s in wanted}
        dense, spent = {}, {}
        for signature, unit in wanted.items():
            start = time.perf_counter()
            dense[signature] = bench(unit, [largest[signature]])[largest[signature]]
            spent[signature] = time.perf_counter() - start
        counts = Counter(unit.signature for unit in found)
        there = {s: table.entries[s](tuple(high for _, high, _ in ranges[s])) for s in ranges if s not in wanted}
        whole = sum(ms * counts[s] for s, ms in (dense | there).items())
        tell("estimate", _estimate(ranges, dense, spent, counts, whole))
        entries = {s: _entry(bench, unit, ranges[s], whole / counts[s]) for s, unit in wanted.items()}
    table = Table(conditions, here, {**table.entries, **entries}, table.calibrations)
    table.save(path)
    if wanted or space.fingerprint not in table.calibrations:
        table = calibrated(table, model, example, space, operations, tell=tell)
        table.save(path)
    bench.journal.unlink(missing_ok=True)
    return table


def _short(entry: Entry, ranges: Sequence[tuple[int, int, int]]) -> bool:
    """Whether an entry begins after the least length of a network, or ends before the greatest."""
    return any(
        high > axis[-1] or min(-(-low // stair) * stair, axis[-1]) < axis[0]
        for axis, stair, (low, high, _) in zip(entry.axes, entry.stairs, ranges, strict=True)
    )


def _joined(entry: Entry, ranges: Sequence[tuple[int, int, int]]) -> tuple[tuple[int, int, int], ...]:
    """What a network and an entry span together."""
    return tuple(
        (min(low, axis[0]), max(high, axis[-1]), step)
        for axis, (low, high, step) in zip(entry.axes, ranges, strict=True)
    )


def _entry(bench: _Bench, unit: Unit, ranges: Sequence[tuple[int, int, int]], whole: float) -> Entry:
    """The grid of one signature. ``whole`` is the network's time per occurrence of it."""
    top = tuple(high for _, high, _ in ranges)
    steps: list[int] = []
    axes: list[list[int]] = []
    for letter, (low, high, spacing) in enumerate(ranges):

        def times(lengths: Sequence[int], others: Lengths, letter: int = letter) -> list[float]:
            points = [(*others[:letter], length, *others[letter + 1 :]) for length in lengths]
            found = bench(unit, points)
            return [found[point] for point in points]

        matters = bench.known[unit.signature, top] > MATTERS * whole
        step = spacing
        if matters and not unit.entries and (high - low) // spacing >= 8:
            neighbours = list(range(high, max(low, high - NEIGHBOURS * spacing) - 1, -spacing))[::-1]
            step = stairs.find(neighbours, times(neighbours, top))
        lines = _lines(low, high, step, lambda lengths: times(lengths, top), MATTERS * whole)
        if len(ranges) > 1 and matters:  # the other letter may bend this one elsewhere when it is small
            middle = tuple(min(-(-(a + b) // (2 * s)) * s, b) for a, b, s in ranges)
            lines = sorted({*lines, *_lines(low, high, step, lambda lengths: times(lengths, middle), MATTERS * whole)})  # noqa: B023
        steps.append(step)
        axes.append(lines)
    return Entry(unit.signature, bench(unit, product(*axes)), tuple(steps))


def _lines(low: int, high: int, step: int, times: Callable[[Sequence[int]], list[float]], matters: float) -> list[int]:
    """Grid lines between which the time is straight, at ends of stairs."""

    def up(length: int) -> int:
        return min(-(-length // step) * step, high)

    lines = sorted({up(low), up((low + high) // 2), high})
    known = dict(zip(lines, times(lines), strict=True))
    todo = list(pairwise(lines))
    while todo:
        between = {pair: up((pair[0] + pair[1]) // 2) for pair in todo}
        new = {(a, b): middle for (a, b), middle in between.items() if a < middle < b and FINEST * (b - a) > high - low}
        found = dict(zip(new.values(), times(list(new.values())), strict=True))
        todo = []
        for (a, b), middle in new.items():
            share = (middle - a) / (b - a)
            straight = known[a] * (1 - share) + known[b] * share
            bend = abs(found[middle] - straight)
            known[middle] = found[middle]
            if bend > max(BENT * found[middle], matters):
                todo += [(a, middle), (middle, b)]
    return sorted(known)


def _estimate(
    ranges: Mapping[str, Sequence[tuple[int, int, int]]],
    dense: Mapping[str, float],
    spent: Mapping[str, float],
    counts: Mapping[str, int],
    whole: float,
) -> dict[str, Any]:
    """About how many points and seconds the table takes: five lines an axis, and a look for stairs.

    ``dense`` has the milliseconds of each signature at its largest, ``spent`` the seconds that took to find out.
    """
    points, seconds = 0, 0.0
    for signature in dense:
        own = 1
        looks = 0
        for low, high, spacing in ranges[signature]:
            own *= min(5, (high - low) // spacing + 1)
            if dense[signature] * counts[signature] > MATTERS * whole:
                looks += min(NEIGHBOURS, (high - low) // spacing)
        points += own + looks
        seconds += spent[signature] * (own / 2 + looks)
    return {"points": points, "seconds": math.ceil(seconds), "signatures": len(dense)}
