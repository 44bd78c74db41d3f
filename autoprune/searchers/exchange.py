"""Groups that grow and groups that pay for them, while the others keep their very counts.

Only what the payers leave over may go to somebody else, once those that grow can take no more of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from autoprune.budget import Budget
from autoprune.scheme import Scheme


def exchange(budget: Budget, parent: Scheme, step: float, swaps: int, rng: np.random.Generator) -> Scheme | None:
    """At most ``swaps`` groups gain up to ``step`` of their width, as many others pay in equal shares.

    What is left goes to those that grow, as far as they can take it; small numbers of groups are likelier, as in
    EvoPress. None when the payers have too little.
    """
    space = budget.space
    counts = [group.counts for group in space.groups]
    growing, paying = parties(parent, counts, swaps, rng)
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
    return spent(budget, child, growing)


def parties(
    parent: Scheme, counts: Sequence[Sequence[int]], swaps: int, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Groups below their largest count to grow, and as many others above their smallest to pay."""
    order = [int(g) for g in rng.permutation(len(counts))]
    few = int(rng.integers(1, swaps + 1, 2).min())
    growing = [g for g in order if parent.kept[g] < counts[g][-1]][:few]
    paying = [g for g in order if g not in growing and parent.kept[g] > counts[g][0]][:few]
    return growing, paying


def spent(budget: Budget, child: Scheme, growing: Sequence[int]) -> Scheme | None:
    """The child with what is left of the budget, those that grow first; None if it is over the budget."""
    if not budget.allows(child):
        return None
    goal = budget.space.rates(child)
    goal[list(growing)] += 1
    return budget.spend(child, goal)
