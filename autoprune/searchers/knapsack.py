"""HALP (Shen et al., NeurIPS 2022): the units worth most for their cost, by a knapsack that is solved again and again."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoprune.budget import SLACK, Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.space import SearchSpace

Array = NDArray[np.float64]

POINTS = 17
"""Counts of a group at which loads are computed; between two they are taken to be straight, as MACs are."""
POWER = 8
"""Of the norm that prices several caps at once: it falls when any of their loads does."""


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
    budget.check()
    importance = [_kept_importance(space, g, score) for g, score in enumerate(hints.scores)]
    scheme = space.largest
    dense_load = budget.load(scheme)
    for target in np.geomspace(dense_load, 1, rounds + 1)[1:]:
        scheme = _cheapest_cuts(space, budget, importance, scheme, float(target))
    while not budget.allows(scheme):  # two cuts together save less than the sum of both
        scheme = _cheapest_cuts(space, budget, importance, scheme, 1.0)
    yield [_give_back(space, budget, importance, scheme)]


def _kept_importance(space: SearchSpace, g: int, score: Sequence[float] | Array) -> Array:
    """Per legal count of a group, the importance of the units that stay."""
    group = space.groups[g]
    best_first = np.sort(np.asarray(score, dtype=np.float64))[::-1]
    totals: Array = np.concatenate([[0.0], np.cumsum(best_first)])
    return totals[np.asarray(group.counts) // group.unit]


def _cheapest_cuts(
    space: SearchSpace, budget: Budget, importance: Sequence[Array], scheme: Scheme, target: float
) -> Scheme:
    """The scheme after the cheapest cuts that, as seen from here, lower every load to ``target``.

    At least one cut is made unless the target is met already.
    """
    now = _loads(budget, scheme)
    if now.max() <= target * (1 + SLACK):
        return scheme
    prices, savings, places = [], [], []
    for g, group in enumerate(space.groups):
        last = group.counts.index(scheme.kept[g])
        saved = now - _curves(budget, scheme, g, last)
        lost = importance[g][last] - importance[g][: last + 1]
        hull = _hull(_norm(now) - _norm(now - saved), lost)
        for above, below in zip(hull, hull[1:], strict=False):
            saving = saved[below] - saved[above]
            prices.append((lost[below] - lost[above]) / _gain(now, saved, above, below))
            savings.append(saving)
            places.append((g, below))
    if not prices:  # nothing lowers the load any more but the smallest counts of all together
        return budget.fit(space.rates(scheme))
    order = np.argsort(prices, kind="stable")
    left = now - np.cumsum(np.array(savings)[order], axis=0)
    enough = np.flatnonzero(left.max(axis=1) <= target * (1 + SLACK))
    taken = order[: enough[0] + 1] if len(enough) else order
    for i in taken:
        g, place = places[i]
        scheme = scheme.replace(g, space.groups[g].counts[place])
    return scheme
