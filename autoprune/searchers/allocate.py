"""Dividing a budget among the groups when each group's loss is known: a price on load, with an exact recount."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from autoprune.budget import Budget
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

Losses = Sequence[NDArray[np.float64]]
"""Per group the loss of each of its legal counts, in their order: finite, at least 0, on one scale."""

ROUNDS = 20
PASSES = 4
IDLE = 3  # prices that led to no other scheme: there is none between the two
NEAR = 0.01  # what a load this close to the budget leaves are a few channels, and they need no price
POWER = 8  # of the norm that stands for the largest of several loads: it falls when any of them does


def allocator(space: SearchSpace, budget: Budget) -> Callable[[Losses], Scheme]:
    """A function that finds the affordable scheme of nearly the least summed loss.

    Were costs additive this would be a knapsack, but MACs are products of neighbouring widths. So a price is put
    on load instead: group after group takes the count of least loss + price x load, the load being that of the
    whole scheme as it stands. The price is bisected until the scheme just fits. What then is left of the budget,
    which may be much where a loss is not convex, is filled on the way to the last scheme that did not fit. The
    answer never loses more than equal rates do.
    """
    budget.check()
    anchors = [_anchors(space, budget, g) for g in range(len(space))]
    equal = budget.fit(np.ones(len(space)))

    def allocate(losses: Losses) -> Scheme:
        if budget.allows(space.largest):
            return space.largest
        scale = max(float(loss.max()) for loss in losses) or 1.0
        losses = [loss / scale for loss in losses]
        found = [equal]
        over, under = space.largest, space.smallest
        low, high = 0.0, math.inf
        price = (sum(float(np.ptp(loss)) for loss in losses) or 1.0) / budget.load(over)
        idle = 0
        for _ in range(ROUNDS):
            scheme = _at_price(space, budget, losses, anchors, price, over)
            idle = idle + 1 if low > 0 and high < math.inf and scheme in {over, under} else 0
            if budget.allows(scheme):
                if scheme != under:
                    found.append(fill(budget, scheme, over))
                under, high = scheme, price
            else:
                over, low = scheme, price
            if idle == IDLE or (high < math.inf and budget.load(under) > 1 - NEAR):
                break
            price = price * 4 if high == math.inf else price / 4 if low == 0 else math.sqrt(low * high)
        found.append(fill(budget, under, over))
        return min(found, key=lambda scheme: _summed(space, losses, scheme))

    return allocate


def fill(budget: Budget, under: Scheme, over: Scheme) -> Scheme:
    """Use the budget up on the straight way from an affordable scheme to a larger one."""
    space = budget.space
    start, goal = space.rates(under), space.rates(over)
    low, high = 0.0, 1.0
    while high - low > 0.01:
        middle = (low + high) / 2
        if budget.allows(space.floor(start + middle * (goal - start))):
            low = middle
        else:
            high = middle
    reached = space.floor(start + low * (goal - start))
    return budget.spend(reached if budget.allows(reached) else under, goal)


def _at_price(
    space: SearchSpace, budget: Budget, losses: Losses, anchors: Sequence[list[int]], price: float, scheme: Scheme
) -> Scheme:
    """Every group in turn at its least loss + price x load, given the others."""
    for _ in range(PASSES):
        before = scheme
        for g, group in enumerate(space.groups):
            total = losses[g] + price * _loads(budget, scheme, g, anchors[g])
            count = group.counts[int(total.argmin())]
            if count != scheme.kept[g]:
                scheme = scheme.replace(g, count)
        if scheme == before:
            break
    return scheme


def _loads(budget: Budget, scheme: Scheme, g: int, at: Sequence[int]) -> NDArray[np.float64]:
    """The load for every legal count of one group, the others being as they are."""
    counts = budget.space.groups[g].counts
    some = [scheme.replace(g, count) for count in at]
    curves = [
        np.interp(counts, at, [budget.costs[name](one) / cap for one in some]) for name, cap in budget.caps.items()
    ]
    if len(curves) == 1:
        return curves[0]
    return norm(np.stack(curves, axis=-1))


def norm(loads: NDArray[np.float64]) -> NDArray[np.float64]:
    """One number for the loads of several caps, which lie along the last axis: near the largest."""
    norms: NDArray[np.float64] = (loads**POWER).sum(axis=-1) ** (1 / POWER)
    return norms


def _anchors(space: SearchSpace, budget: Budget, g: int) -> list[int]:
    """Counts of a group between which every cost is a straight line: both ends for MACs, more for a staircase."""
    counts = space.groups[g].counts
    few, many = (
        [counts[i] for i in np.unique(np.linspace(0, len(counts) - 1, n).round().astype(int))] for n in (5, 17)
    )
    ends = [few[0], few[-1]]
    for name in budget.caps:
        costs = [budget.costs[name](space.largest.replace(g, count)) for count in few]
        if not np.allclose(np.interp(few, ends, [costs[0], costs[-1]]), costs, rtol=1e-6):
            return many
    return sorted(set(ends))


def _summed(space: SearchSpace, losses: Losses, scheme: Scheme) -> float:
    parts = zip(losses, space.groups, scheme.kept, strict=True)
    return sum(float(loss[group.counts.index(count)]) for loss, group, count in parts)
