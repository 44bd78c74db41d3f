"""Action walls: how many channels a group really keeps when an agent asks for some rate.

A wall is made for a budget, ``wall(budget)``, and then answers ``(prefix, rate) -> count``: ``prefix`` are the
counts of the groups before, ``rate`` is the fraction of the next group's channels that the agent would keep. The
count is legal in the budget's space. An own wall is a function like these.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from autoprune.budget import Budget
from autoprune.cost import WeightedSizes
from autoprune.errors import UserError
from autoprune.space import SearchSpace
from autoprune.sparse_cost import Sum

Clip = Callable[[Sequence[int], float], int]
Wall = Callable[[Budget], Clip]


def one_sided(budget: Budget) -> Clip:
    """The paper's: never so much that the groups after it could not make up for it.

    An episode ends within the budget, but nothing makes it use the budget.
    """

    def clip(prefix: Sequence[int], rate: float) -> int:
        return min(_nearest(budget.space, prefix, rate), budget.ceiling(prefix))

    return clip


def two_sided(budget: Budget) -> Clip:
    """Never too much, and never so little that the groups after it could not use the budget up.

    The rule of NNI 2 for sparsities. One more step of the last group that is not at its largest would leave the
    budget, so all schemes cost nearly the same and their rewards compare.
    """

    def clip(prefix: Sequence[int], rate: float) -> int:
        count = _nearest(budget.space, prefix, rate)
        return min(max(count, budget.least(prefix)), budget.ceiling(prefix))

    return clip


def release(budget: Budget, lbound: float = 0.2) -> Clip:
    """AMC's published code, to the letter: an episode may end a little over the budget.

    The undecided groups are taken at the fraction ``lbound``, whether or not that is a legal count; the rate is
    cut to what then fits, is at least ``lbound``, and is rounded to a whole channel and then *up* to a legal count,
    which is not checked again. The release has multiples of 8 as legal counts (``named.round_to(space, 8)``).
    """
    caps: list[tuple[WeightedSizes | Sum, float]] = []
    for name, cap in budget.caps.items():
        cost = budget.costs[name]
        if not isinstance(cost, WeightedSizes | Sum):
            raise UserError(f"the release's wall counts fractional channels, {name!r} cannot: cap macs or params")
        caps.append((cost, cap))
    space = budget.space

    def fits(prefix: Sequence[int], rate: float) -> bool:
        kept = space.widths * np.float64(lbound)
        kept[: len(prefix)] = prefix
        kept[len(prefix)] = rate * space.widths[len(prefix)]
        return all(cost.at(kept) <= cap for cost, cap in caps)

    def clip(prefix: Sequence[int], rate: float) -> int:
        group = space.groups[len(prefix)]
        if not fits(prefix, rate):
            low, high = 0.0, rate
            while high - low > 1e-9:
                middle = (low + high) / 2
                low, high = (middle, high) if fits(prefix, middle) else (low, middle)
            rate = low
        wanted = max(round(max(rate, lbound) * group.width), 1)
        return group.counts[min(bisect_left(group.counts, wanted), len(group.counts) - 1)]

    return clip


def none(budget: Budget) -> Clip:
    """No wall: the nearest legal count (accuracy-guaranteed search, with a reward that weighs the cost)."""

    def clip(prefix: Sequence[int], rate: float) -> int:
        return _nearest(budget.space, prefix, rate)

    return clip


def _nearest(space: SearchSpace, prefix: Sequence[int], rate: float) -> int:
    """The count of the next group that is nearest to a fraction of its width."""
    group = space.groups[len(prefix)]
    return group.nearest(rate * group.width)


WALLS: Mapping[str, Wall] = {"two-sided": two_sided, "one-sided": one_sided, "release": release, "none": none}
