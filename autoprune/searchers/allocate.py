"""Dividing a budget among the groups when each group's loss is known: Lagrange multipliers with an exact recount."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoprune.budget import Budget
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

Losses = Sequence[NDArray[np.float64]]
"""Per group the loss of each of its legal counts, in their order; finite and on one scale."""

ROUNDS = 40
PASSES = 4
NEAR = 0.003  # a load this close to the budget leaves a few channels, which need no price
POWER = 8  # of the norm that stands for the largest of several loads: it falls when any of them does


def allocate(space: SearchSpace, budget: Budget, losses: Losses) -> Scheme:
    """The affordable scheme of nearly the least summed loss.

    Were costs additive this would be a knapsack. They are products of neighbouring widths, so a price is put
    on load instead: group after group takes the count of least loss + price x load, the load being that of the
    whole scheme as it stands, until nothing changes. The price is bisected until the scheme just fits. What
    then is left of the budget, which may be much where a loss is not convex, is filled on the way to the last
    scheme that did not fit.
    """
    budget.check()
    if budget.allows(space.largest):
        return space.largest
    scale = max(float(loss.max()) for loss in losses) or 1.0
    losses = [loss / scale for loss in losses]
    anchors = [_anchors(space, budget, g) for g in range(len(space))]
    over, under = space.largest, space.smallest
    filled = [budget.fit(np.ones(len(space)))]
    low, high = 0.0, math.inf
    price = (sum(float(np.ptp(loss)) for loss in losses) or 1.0) / budget.load(over)
    for _ in range(ROUNDS):
        scheme = _at_price(space, budget, losses, anchors, price, over)
        if budget.allows(scheme):
            under, high = scheme, price
            filled.append(fill(space, budget, under, over))
        else:
            over, low = scheme, price
        if high <= 1.001 * low or (high < math.inf and budget.load(under) > 1 - NEAR):
            break
        price = price * 4 if high == math.inf else price / 4 if low == 0 else math.sqrt(low * high)
    filled.append(fill(space, budget, under, over))
    return min(filled, key=lambda scheme: _loss(space, losses, scheme))


def _loss(space: SearchSpace, losses: Losses, scheme: Scheme) -> float:
    parts = zip(losses, space.groups, scheme.kept, strict=True)
    return sum(float(loss[group.counts.index(count)]) for loss, group, count in parts)


def fill(space: SearchSpace, budget: Budget, under: Scheme, over: Scheme) -> Scheme:
    """The last affordable scheme on the straight way from one that is to one that is not, and its rest spent."""
    start, goal = space.rates(under), space.rates(over)
    low, high = 0.0, 1.0
    while high - low > 1e-3:
        middle = (low + high) / 2
        if budget.allows(space.floor(start + middle * (goal - start))):
            low = middle
        else:
            high = middle
    reached = start + low * (goal - start)
    scheme = space.floor(reached)
    return budget.spend(scheme if budget.allows(scheme) else under, np.maximum(reached, goal))


def _at_price(
    space: SearchSpace, budget: Budget, losses: Losses, anchors: Sequence[list[int]], price: float, scheme: Scheme
) -> Scheme:
    """Every group at its least loss + price x load, given the others; a fixed point unless the passes run out."""
    for _ in range(PASSES):
        before = scheme
        for g, group in enumerate(space.groups):
            total = losses[g] + price * _loads(space, budget, scheme, g, anchors[g])
            scheme = scheme.replace(g, group.counts[int(total.argmin())])
        if scheme == before:
            break
    return scheme


def _loads(space: SearchSpace, budget: Budget, scheme: Scheme, g: int, at: list[int]) -> NDArray[np.float64]:
    """The load for every legal count of one group, the others being as they are."""
    counts = space.groups[g].counts
    some = [scheme.replace(g, count) for count in at]
    loads = np.zeros(len(counts))
    for name, cap in budget.caps.items():
        cost = budget.costs[name]
        curve = np.interp(counts, at, [cost(one) / cap for one in some])
        if len(budget.caps) == 1:
            return curve
        loads += curve**POWER
    result: NDArray[np.float64] = loads ** (1 / POWER)
    return result


def _anchors(space: SearchSpace, budget: Budget, g: int) -> list[int]:
    """Counts of a group between which every cost is a straight line: both ends for MACs, more for a staircase."""
    counts = space.groups[g].counts
    few, many = ([counts[i] for i in np.unique(np.linspace(0, len(counts) - 1, n).round().astype(int))] for n in (5, 17))
    if len(few) < 3:
        return few
    for name in budget.caps:
        costs = [budget.costs[name](space.largest.replace(g, count)) for count in few]
        if not np.allclose(np.interp(few, [few[0], few[-1]], [costs[0], costs[-1]]), costs, rtol=1e-6):
            return many
    return [few[0], few[-1]]
