"""The one home of feasibility: caps on costs, and the schemes that fit under them."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoprune.cost import Cost, costs
from autoprune.errors import UserError
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

BYTES = {"": 1.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
UNITS: Mapping[str, Mapping[str, float]] = {
    "macs": {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
    "params": {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9},
    "latency": {"": 1.0, "ms": 1.0, "us": 1e-3, "s": 1e3},
    "memory": BYTES,
    "weights": {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9},
    "bitmask": BYTES,
    "csr": BYTES,
}
EXAMPLE = "macs=50%, macs=63M, params=1.2M, latency=8ms or memory=24MiB"
SLACK = 1e-12
"""A load may exceed a bound by this much, the rounding of its division."""


@dataclass(frozen=True, eq=False)
class Budget:
    """Caps on what is kept, bound to the space they apply to.

    ``caps`` are absolute, ``relative`` names those that were given as a share of the dense network's cost; ``costs``
    computes them. Every searcher asks this object instead of drawing
    until something fits.
    """

    space: SearchSpace
    caps: Mapping[str, float]
    costs: Mapping[str, Cost]
    relative: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not self.caps:
            raise UserError(f"a budget needs at least one cap, such as {EXAMPLE}")
        for name, cap in self.caps.items():
            if name not in self.costs:
                raise UserError(f"budget {name!r} has no cost function: known are {', '.join(self.costs)}")
            if not (math.isfinite(cap) and cap > 0):
                raise UserError(f"budget {name}={cap}: a cap is a positive number")

    @classmethod
    def parse(
        cls, text: str | Sequence[str], space: SearchSpace, functions: Mapping[str, Cost] | None = None
    ) -> Budget:
        """Read caps such as ``macs=50%`` (of the dense model) or ``macs=63M,params=1.2M``."""
        functions = costs(space) if functions is None else functions
        caps: dict[str, float] = {}
        relative = set()
        items = [text] if isinstance(text, str) else list(text)
        for item in (part.strip() for entry in items for part in entry.split(",")):
            name, value = _cap(item, space, functions)
            if name in caps:
                raise UserError(f"budget {item!r}: {name} is capped twice")
            caps[name] = value
            if item.endswith("%"):
                relative.add(name)
        return cls(space, caps, functions, frozenset(relative))

    @property
    def record(self) -> dict[str, float]:
        """The caps as runs record them."""
        return {cost: round(cap, 6) for cost, cap in self.caps.items()}

    def load(self, scheme: Scheme) -> float:
        """How full the fullest cap is: at most 1 when the scheme is affordable."""
        return max(self.costs[name](scheme) / cap for name, cap in self.caps.items())

    def allows(self, scheme: Scheme) -> bool:
        """Whether every cap holds."""
        return self.load(scheme) <= 1 + SLACK

    def reachable(self) -> dict[str, tuple[float, float]]:
        """Per capped cost: what the smallest and the dense scheme need."""
        space = self.space
        return {name: (self.costs[name](space.smallest), self.costs[name](space.dense)) for name in self.caps}

    def check(self) -> None:
        """Refuse a budget that no scheme of the space can meet."""
        for name, (low, high) in self.reachable().items():
            if low / self.caps[name] > 1 + SLACK:
                unit = " ms" if name == "latency" else ""
                raise UserError(
                    f"budget {name}={self.caps[name]:.4g}{unit} ({self.caps[name] / high:.1%} of the dense model) "
                    f"cannot be reached: this search space goes from {low:.4g} ({low / high:.1%}) to {high:.4g}{unit}; "
                    "raise the budget or let more layers be pruned"
                )

    def fit(self, rates: Sequence[float] | NDArray[np.float64]) -> Scheme:
        """The largest scheme under every cap whose rates are proportional to ``rates``.

        All rates are scaled by one factor (a group that reaches its full width stays there), rounded
        down to legal counts, and what rounding left is spent on the groups that lost most by it.
        """
        wanted = np.asarray(rates, dtype=np.float64)
        if wanted.shape != (len(self.space),) or not np.isfinite(wanted).all() or (wanted < 0).any():
            raise UserError(f"fit needs {len(self.space)} finite rates that are not negative, got {wanted}")
        wanted = np.maximum(wanted, 1e-6)
        self.check()
        low, high = 0.0, float(1 / wanted.min())
        if self.allows(self.space.largest):
            return self.space.largest
        while high - low > 1e-4 * high:
            middle = (low + high) / 2
            if self.allows(self._scaled(wanted, middle)):
                low = middle
            else:
                high = middle
        return self.spend(self._scaled(wanted, low), np.minimum(wanted * low, 1.0))

    def _scaled(self, rates: NDArray[np.float64], factor: float) -> Scheme:
        return self.space.floor(np.minimum(rates * factor, 1.0))

    def spend(self, scheme: Scheme, rates: NDArray[np.float64] | None = None) -> Scheme:
        """Grow an affordable scheme, one legal step a group and round, until nothing more fits.

        Groups furthest below their wanted ``rates`` come first (default: the rates they have).
        """
        space = self.space
        goal = space.rates(scheme) if rates is None else rates
        growing = [int(g) for g in np.argsort(space.rates(scheme) - goal, kind="stable")]
        while growing:
            grown = []  # a group that does not fit now will not fit later: costs only rise on the way
            for g in growing:
                counts = space.groups[g].counts
                at = bisect_right(counts, scheme.kept[g])
                if at < len(counts) and self.allows(larger := scheme.replace(g, counts[at])):
                    scheme = larger
                    grown.append(g)
            growing = grown
        return scheme

    def cut(self, scheme: Scheme, group: int, step: float) -> Scheme | None:
        """NetAdapt's question: the mildest cut of one group that lowers the load by ``step``.

        None when even the smallest legal count does not.
        """
        target = self.load(scheme) - step + SLACK
        counts = [count for count in self.space.groups[group].counts if count < scheme.kept[group]]
        best = _largest(counts, lambda count: self.load(scheme.replace(group, count)) <= target)
        return None if best is None else scheme.replace(group, best)

    def ceiling(self, prefix: Sequence[int]) -> int:
        """AMC's action wall: the most channels the next group may keep.

        ``prefix`` are the counts decided so far; the groups after the next one are taken at their
        smallest. The smallest legal count is the answer when no count fits.
        """
        group = len(prefix)
        scheme = self._completed(prefix, self.space.smallest)
        counts = self.space.groups[group].counts
        best = _largest(counts, lambda count: self.allows(scheme.replace(group, count)))
        return counts[0] if best is None else best

    def least(self, prefix: Sequence[int]) -> int:
        """The wall's other side: the fewest channels the next group may keep so that the budget can be used up.

        With the groups after the next one at their largest, a cap is reached from this count on. Never more
        than :meth:`ceiling`; the largest legal count where the budget cannot be used up any more.
        """
        group = len(prefix)
        scheme = self._completed(prefix, self.space.largest)
        counts = self.space.groups[group].counts
        below = _largest(counts, lambda count: self.load(scheme.replace(group, count)) < 1)
        enough = counts[0] if below is None else counts[min(counts.index(below) + 1, len(counts) - 1)]
        return min(enough, self.ceiling(prefix))

    def _completed(self, prefix: Sequence[int], rest: Scheme) -> Scheme:
        """The decided counts, and those of ``rest`` for the groups after them."""
        return Scheme((*prefix, *rest.kept[len(prefix) :]), self.space.granularity)


def _largest(counts: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest count that fits; fitting is monotone in the count."""
    low, high = 0, len(counts)
    while low < high:
        middle = (low + high) // 2
        if fits(counts[middle]):
            low = middle + 1
        else:
            high = middle
    return counts[low - 1] if low else None


def _cap(item: str, space: SearchSpace, functions: Mapping[str, Cost]) -> tuple[str, float]:
    """One cap: the name of its cost and the absolute value."""
    match = re.fullmatch(r"(\w+)\s*=\s*([0-9.eE+-]+)\s*(%|[a-zA-Z]*)", item)
    if match is None:
        raise UserError(f"budget {item!r} cannot be read: write it like {EXAMPLE}")
    name, digits, unit = match.groups()
    if name not in functions:
        only = "" if name not in UNITS else f" for {space.noun}"
        raise UserError(f"budget {item!r}: cost {name!r} is unknown{only}, use one of {', '.join(functions)}")
    try:
        value = float(digits)
    except ValueError:
        raise UserError(f"budget {item!r}: {digits!r} is not a number, write it like {EXAMPLE}") from None
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"budget {item!r}: a cap must be a positive number, such as {EXAMPLE}")
    if unit == "%":
        return name, value / 100 * functions[name](space.dense)
    written = UNITS.get(name, {"": 1.0})
    units = {key.lower(): factor for key, factor in written.items()}
    if unit.lower() not in units:
        known = ", ".join(["%", *filter(None, written)])
        alone = " (which is ms)" if name == "latency" else ""
        raise UserError(f"budget {item!r}: unit {unit!r} is unknown, use one of {known} or none{alone}")
    return name, value * units[unit.lower()]
