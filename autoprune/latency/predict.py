"""The latency of a scheme from a table: the sum over the network's pieces, corrected by whole networks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoprune.errors import UserError
from autoprune.latency.table import Lengths, Table
from autoprune.latency.units import Unit
from autoprune.operations import Operations, Volumes
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

DEAR = 0.05
"""A width between two stairs is left out if it takes this share of the way between them more than its own."""
LAYERS = ("conv", "linear", "addmm", "matmul", "bmm")
FEATURES = ("layers", "others", "megabytes", "calls")
"""What a prediction is made of: milliseconds of layers and of all other pieces, weights, and a constant."""
UNCORRECTED: Mapping[str, float] = {"layers": 1.0, "others": 1.0, "megabytes": 0.0, "calls": 0.0}


class TableLatency:
    """Milliseconds of a scheme: the cost behind ``latency=8ms``. Never less when more is kept.

    ``weights`` come from a calibration: one for each of :data:`FEATURES`, and perhaps one for the pieces of a
    signature, which then stands in place of their kind's. None is negative. The rest of the calibration's record says
    how well it predicted.
    """

    def __init__(
        self,
        operations: Operations,
        found: Sequence[Unit],
        table: Table,
        weights: Mapping[str, float] = UNCORRECTED,
        calibration: Mapping[str, Any] | None = None,
    ) -> None:
        absent = table.missing(unit.signature for unit in found)
        if absent:
            raise UserError(
                f"the latency table lacks {len(absent)} signatures of this network, the first is {absent[0]}; "
                "`autoprune latency build` measures them"
            )
        self.table, self.weights, self.calibration = table, dict(weights), dict(calibration or {})
        self._operations, self._units = operations, list(found)
        self._known: dict[tuple[str, Lengths], float] = {}
        kinds = {unit.signature: int(not unit.operations[0].name.startswith(LAYERS)) for unit in found}
        self.signatures, self._kinds = list(kinds), np.array(list(kinds.values()), dtype=np.int64)
        at = {signature: number for number, signature in enumerate(kinds)}
        self._fixed = np.zeros(len(kinds))
        self._pieces: list[tuple[int, str, int]] = []  # its number, signature, letters
        places: list[int] = []
        for unit in found:
            if not unit.letters:
                self._fixed[at[unit.signature]] += self._time(unit.signature, ())
            elif not unit.entries:
                self._pieces.append((at[unit.signature], unit.signature, len(unit.letters)))
                places += unit.letters
        self._rest, self._slope = operations.rest[places], operations.slope[places]
        self._bulky = [(at[unit.signature], unit) for unit in found if unit.entries]
        weighty = {o.storage: list(o.place) for call in operations.calls for o in call.read if o.parameter}
        self._parameters = Volumes(operations, list(weighty.values()))
        self._vector = self.vector(self.weights)

    def __call__(self, scheme: Scheme) -> float:
        """The cost of a scheme."""
        return float(self.details(np.asarray(scheme.kept, dtype=np.float64)) @ self._vector)

    def at(self, kept: NDArray[Any]) -> float:
        """The cost at counts that need not be whole: that of the next whole ones."""
        return float(self.details(np.ceil(np.asarray(kept, dtype=np.float64) - 1e-9)) @ self._vector)

    def vector(self, weights: Mapping[str, float]) -> NDArray[np.float64]:
        """What each of the :meth:`details` counts."""
        pieces = [weights.get(s, weights[FEATURES[kind]]) for s, kind in zip(self.signatures, self._kinds, strict=True)]
        return np.array([*pieces, *(weights[name] for name in FEATURES[2:])])

    def corrected(self, calibration: Mapping[str, Any]) -> TableLatency:
        """The same with the weights of a calibration's record."""
        told = dict(calibration)
        weights = told.pop("weights", None)
        absent = [name for name in FEATURES if not isinstance(weights, Mapping) or name not in weights]
        if absent:
            raise UserError(
                f"the latency table's correction for this network has no weight of {absent[0]!r}: remove it from the "
                "table's calibrations, and networks are timed anew"
            )
        for name, value in weights.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and value >= 0):
                raise UserError(
                    f"the latency table's correction weighs {name} by {value!r}: a number of at least 0 is needed"
                )
        return TableLatency(self._operations, self._units, self.table, weights, told)

    def features(self, kept: NDArray[np.float64]) -> NDArray[np.float64]:
        """What :data:`FEATURES` are at these counts."""
        *times, megabytes, calls = self.details(kept)
        return np.array([*np.bincount(self._kinds, times, minlength=2), megabytes, calls])

    def details(self, kept: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same with the milliseconds of every signature by themselves, in the order of ``signatures``."""
        times = self._fixed.copy()
        lengths = iter(np.rint(self._rest + self._slope @ kept).astype(np.int64).tolist())
        for number, signature, letters in self._pieces:
            times[number] += self._time(signature, (next(lengths),) if letters == 1 else (next(lengths), next(lengths)))
        if self._bulky:
            sizes = self._operations.sizes(kept)
            for number, unit in self._bulky:
                times[number] += self._time(unit.signature, unit.lengths(sizes))
        return np.array([*times, 4e-6 * float(self._parameters(kept).sum()), 1.0])

    def ends(self, space: SearchSpace, group: int) -> set[int]:
        """The counts of a group at which a stair of some piece ends, the other groups being whole."""
        counts, step = space.groups[group].counts, space.groups[group].unit
        whole = np.tile(np.asarray(space.widths, dtype=np.float64), (len(counts), 1))
        whole[:, group] = counts
        lengths = np.rint(self._rest + whole @ self._slope.T).astype(np.int64)
        stairs = [stair for _, signature, _ in self._pieces for stair in self.table.entries[signature].stairs]
        found: set[int] = set()
        for column, (stair, slope) in enumerate(zip(stairs, self._slope[:, group], strict=True)):
            if stair > slope * step > 0:
                found |= {
                    count for count, length in zip(counts, lengths[:, column], strict=True) if length % stair == 0
                }
        return found

    def _time(self, signature: str, lengths: Lengths) -> float:
        known = self._known.get((signature, lengths))
        if known is None:
            known = self._known[signature, lengths] = self.table.entries[signature](lengths)
        return known


def liked(space: SearchSpace, latency: TableLatency) -> SearchSpace:
    """The space without the widths that the hardware does not reward.

    A count goes where the next legal one is as fast, and where it lies between two ends of stairs and takes longer than
    its share of the way from one to the other: who pays for a stair gets it whole. The other groups are whole then.
    The smallest latency of every group stays within reach.
    """
    groups = []
    for g, group in enumerate(space.groups):
        times = {count: latency(space.dense.replace(g, count)) for count in group.counts}
        least = 1e-9 + times[group.counts[-1]] * 1e-6
        flat = {a for a, b in pairwise(group.counts) if times[b] - times[a] <= least}
        ends = sorted({group.counts[0], *latency.ends(space, g), group.counts[-1]})
        dear = {c for a, b in pairwise(ends) for c in group.counts if a < c < b and _dear(times, a, c, b)}
        groups.append(replace(group, counts=tuple(c for c in group.counts if c not in flat | dear)))
    return replace(space, groups=tuple(groups))


def _dear(times: Mapping[int, float], a: int, count: int, b: int) -> bool:
    rise = times[b] - times[a]
    return times[count] - times[a] > rise * ((count - a) / (b - a) + DEAR)
