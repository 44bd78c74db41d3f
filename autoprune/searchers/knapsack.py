"""HALP (Shen et al., NeurIPS 2022): the units worth most for their cost, by a knapsack solved again and again."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from autoprune.budget import SLACK, Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.allocate import norm
from autoprune.space import SearchSpace

Array = NDArray[np.float64]

POINTS = 17
"""Counts of a group at which loads are computed; between two they are taken to be straight, as MACs are."""


def knapsack(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    rounds: int = 30,
) -> Proposals:
    """One scheme, without search: the least summed importance is given up for the load that has to go.

    The scores in the hints are taken for importances, additive and on one scale. A group loses its least important
    units first, so the units still kept are ordered, and each has a price: its importance per load that it saves.
    Savings are products of widths and change with every cut. So the load goes down in ``rounds`` steps of equal
    ratio from the dense network's to the budget; in each, savings are computed anew at the scheme as it stands,
    and the cheapest cuts are made that reach the step's target. What the last cut saved too much is given back,
    the most important per load first.

    Within a round this is a knapsack in which units of a group have an order. HALP fills it by dynamic programming
    over integer costs; here prices of cuts that are not worth it on the way to a cheaper one are merged (the
    convex hull of importance over load), so that the cheapest cuts first is optimal but for the last cut. HALP
    counts what a layer's own latency loses, and its consumers' in the next round; here the saving is that of the
    whole network. HALP trains between rounds, protects the stem, and cuts whole steps of a latency table; here the
    network stays, the space says what may be cut, and any legal count may stay.

    Where the hints hold no scores, no unit is better than another, and rates are equal. The seed plays no part.
    """
    if rounds < 1:
        raise UserError(f"knapsack: rounds={rounds}: the budget is reached in at least one round")
    if not hints.scores:
        yield [budget.fit(np.ones(len(space)))]
        return
    yield [filled(space, budget, hints.scores, rounds)]


def filled(space: SearchSpace, budget: Budget, scores: Sequence[Array], rounds: int = 30) -> Scheme:
    """The scheme of :func:`knapsack` for unit scores, one array per group."""
    budget.check()
    importance = [_kept_importance(space, g, score) for g, score in enumerate(scores)]
    scheme = space.largest
    dense_load = budget.load(scheme)
    for target in np.geomspace(dense_load, 1, rounds + 1)[1:]:
        scheme = _cheapest_cuts(space, budget, importance, scheme, float(target))
    while not budget.allows(scheme):  # two cuts together save less than the sum of both
        scheme = _cheapest_cuts(space, budget, importance, scheme, 1.0)
    return _give_back(space, budget, importance, scheme)


def _kept_importance(space: SearchSpace, g: int, score: Sequence[float] | Array) -> Array:
    """Per legal count of a group, the importance of the units that stay."""
    group = space.groups[g]
    best_first = np.sort(np.asarray(score, dtype=np.float64))[::-1]
    totals = np.concatenate([[0.0], np.cumsum(best_first)])
    kept: Array = totals[np.asarray(group.counts) // group.unit]
    return kept


def _cheapest_cuts(
    space: SearchSpace, budget: Budget, importance: Sequence[Array], scheme: Scheme, target: float
) -> Scheme:
    """The scheme after the cheapest cuts that, as seen from here, lower every load to ``target``.

    At least one cut is made unless the target is met already.
    """
    now = _loads(budget, scheme)
    if now.max() <= target * (1 + SLACK):
        return scheme
    prices: list[float] = []
    savings: list[Array] = []
    cuts: list[tuple[int, int]] = []
    for g, group in enumerate(space.groups):
        counts = group.counts[: bisect_right(group.counts, scheme.kept[g])][::-1]
        loads = _curve(budget, scheme, g, counts)
        lost = importance[g][len(counts) - 1] - importance[g][: len(counts)][::-1]
        saved = norm(loads[0]) - norm(loads)
        for before, after in pairwise(_hull(saved, lost)):
            prices.append(_slope(saved, lost, before, after))
            savings.append(loads[before] - loads[after])
            cuts.append((g, counts[after]))
    if not cuts:  # the load is a staircase on which no group reaches the next stair alone
        return budget.fit(space.rates(scheme))
    cheapest_first = np.argsort(prices, kind="stable")
    left = (now - np.cumsum(np.array(savings)[cheapest_first], axis=0)).max(axis=1)
    few = int(np.argmax(left <= target * (1 + SLACK))) + 1 if left.min() <= target * (1 + SLACK) else len(cuts)
    for cut in cheapest_first[:few]:
        scheme = scheme.replace(*cuts[cut])
    return scheme


def _loads(budget: Budget, scheme: Scheme) -> Array:
    """How full every cap is."""
    return np.array([budget.costs[name](scheme) / cap for name, cap in budget.caps.items()])


def _curve(budget: Budget, scheme: Scheme, g: int, counts: Sequence[int]) -> Array:
    """The loads for counts of one group, in descending order, the others being as they are."""
    places = np.unique(np.linspace(0, len(counts) - 1, POINTS).round().astype(np.int64))
    some = np.array([_loads(budget, scheme.replace(g, counts[place])) for place in places])
    at = [-counts[place] for place in places]
    return np.stack([np.interp(np.negative(counts), at, loads) for loads in some.T], axis=1)


def _hull(saved: Array, lost: Array) -> list[int]:
    """The corners of the lower convex hull of what is lost over what is saved, from the first point on."""
    corners = [0]
    for point in range(1, len(saved)):
        if saved[point] <= saved[corners[-1]]:
            continue
        while len(corners) > 1 and _slope(saved, lost, *corners[-2:]) >= _slope(saved, lost, corners[-1], point):
            corners.pop()
        corners.append(point)
    return corners


def _slope(saved: Array, lost: Array, before: int, after: int) -> float:
    return float((lost[after] - lost[before]) / (saved[after] - saved[before]))


def _give_back(space: SearchSpace, budget: Budget, importance: Sequence[Array], scheme: Scheme) -> Scheme:
    """Grow by the most important units per load until none fits."""
    while True:
        here, best = float(norm(_loads(budget, scheme))), None
        most = -math.inf
        for g, group in enumerate(space.groups):
            place = bisect_right(group.counts, scheme.kept[g])
            if place == len(group.counts):
                continue
            larger = scheme.replace(g, group.counts[place])
            if budget.allows(larger):
                grown = max(float(norm(_loads(budget, larger))) - here, SLACK)
                worth = (importance[g][place] - importance[g][place - 1]) / grown
                if worth > most:
                    best, most = larger, worth
        if best is None:
            return scheme
        scheme = best
