"""Widths from one ranking of all units: a starting point that costs no measurement."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoprune.budget import Budget
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace


def ranking(space: SearchSpace, budget: Budget, scores: Sequence[NDArray[np.float64]]) -> Scheme:
    """Keep the units of all groups that score above one threshold, the lowest that the budget allows.

    Every group keeps at least its smallest legal count. What the rounding to legal counts leaves of the
    budget is spent in proportion.
    """
    thresholds = np.unique(np.concatenate(scores))
    low, high = 0, len(thresholds)  # a threshold above all scores leaves the smallest scheme
    while low < high:
        middle = (low + high) // 2
        if budget.allows(_above(space, scores, thresholds[middle])):
            high = middle
        else:
            low = middle + 1
    scheme = _above(space, scores, thresholds[low] if low < len(thresholds) else np.inf)
    return budget.fit(space.rates(scheme))


def per_load(space: SearchSpace, budget: Budget, scores: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """The scores divided by the load of one unit in the dense network, as a knapsack is filled greedily."""
    full = budget.load(space.dense)
    divided = []
    for g, group in enumerate(space.groups):
        freed = full - budget.load(space.dense.replace(g, group.counts[0]))
        cut = (group.width - group.counts[0]) // group.unit
        divided.append(np.asarray(scores[g]) * (cut / freed if freed > 0 else 1.0))
    return divided


def starts(space: SearchSpace, budget: Budget, hints: Hints) -> list[Scheme]:
    """What is worth a trial before anything is known: equal rates, two rankings, and the schemes given."""
    found = [budget.fit(np.ones(len(space)))]
    if hints.scores:
        found.append(ranking(space, budget, hints.scores))
        found.append(ranking(space, budget, per_load(space, budget, hints.scores)))
    for start in hints.starts:
        space.check(start)
        found.append(start if budget.allows(start) else budget.fit(space.rates(start)))
    return found


def _above(space: SearchSpace, scores: Sequence[NDArray[np.float64]], threshold: float) -> Scheme:
    counts = [
        int((np.asarray(s) >= threshold).sum()) * group.unit for s, group in zip(scores, space.groups, strict=True)
    ]
    return space.floor(counts / space.widths)
