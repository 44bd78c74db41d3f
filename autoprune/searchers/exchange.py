"""Groups that grow and groups that pay for them, while all others keep their very counts."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from autoprune.budget import Budget
from autoprune.scheme import Scheme


def exchange(budget: Budget, parent: Scheme, step: float, swaps: int, rng: np.random.Generator) -> Scheme | None:
    """At most ``swaps`` groups gain up to ``step`` of their width, as many others pay in equal shares.

    What is left goes to those that grow; small numbers of groups are likelier, as in EvoPress. None when the payers
    have too little.
    """
    space = budget.space
    order = [int(g) for g in rng.permutation(len(space))]
    few = int(rng.integers(1, swaps + 1, 2).min())
    growing = [g for g in order if parent.kept[g] < space.groups[g].counts[-1]][:few]
    paying = [g for g in order if g not in growing and parent.kept[g] > space.groups[g].counts[0]][:few]
    child = parent
    for g in growing:
        group, kept = space.groups[g], parent.kept[g]
        larger = group.counts[bisect_right(group.counts, kept)]
        child = child.replace(g, max(larger, group.floor(kept + rng.uniform(0, step) * group.width)))
    for place, g in enumerate(paying):
        if budget.allows(child):
            break
        share = (budget.load(child) - 1) / (len(paying) - place)
        child = budget.cut(child, g, share) or child.replace(g, space.groups[g].counts[0])
    if not budget.allows(child):
        return None
    goal = space.rates(child)
    goal[growing] += 1
    return budget.spend(child, goal)
