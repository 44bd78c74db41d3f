"""FastNAS, the pruning search of NVIDIA's Model Optimizer: one threshold on what any group alone may cost."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.allocate import fill
from autoprune.searchers.asking import in_batches
from autoprune.searchers.ranking import starts
from autoprune.searchers.sensitivity import table
from autoprune.space import SearchSpace

APART = 1.25


def fastnas(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    points: int = 3,
    neighbours: int = 6,
) -> Proposals:
    """Measures every group's sensitivity, and lets no group's own cut cost more than it must; the seed plays no part.

    ``points`` counts of every group are measured alone (:func:`autoprune.searchers.sensitivity.table`). Then every
    group takes the smallest count whose drop of reward is at most a threshold, the least threshold that meets the
    budget, found by bisection. This minimises the greatest drop of a single group, while
    :func:`autoprune.searchers.sensitivity.sensitivity` minimises their sum. ``neighbours`` more schemes come from
    thresholds nearby, above and below in turn, each 1.25 times further away. All use the budget up. Equal rates and
    what the hints offer follow: the rankings of unit scores, the start schemes.

    Differences to the original: ``points`` counts a group and interpolation to all legal counts, instead of
    measuring all of a list of ratios; a group is skipped where it loses nothing instead of less than 1e-5,
    for rewards have no scale; the bisection is over the drops that occur and therefore exact; what it leaves of the
    budget is spent; and its result is measured, with its neighbours, instead of being taken at its word.

    Nothing is affordable before the table is complete: allow groups x ``points`` + ``neighbours`` + 5 trials.
    """
    if neighbours < 0:
        raise UserError(f"fastnas: neighbours={neighbours} must not be negative")
    believed = starts(space, budget, hints)
    drops = yield from table(space, batch=batch, points=points)
    losses = drops.losses(space)
    thresholds = sorted({float(drop) for loss in losses for drop in loss})

    least = bisect_left(thresholds, True, key=lambda threshold: budget.allows(_within(space, losses, threshold)))
    over = _within(space, losses, thresholds[least - 1]) if least else space.largest
    proposals = [fill(budget, _within(space, losses, thresholds[least]), over)]
    for number in range(neighbours):
        away = APART ** (number // 2 + 1)
        near = _within(space, losses, thresholds[least] * (1 / away if number % 2 else away))
        affordable = budget.allows(near)
        proposals.append(fill(budget, near, space.largest) if affordable else fill(budget, space.smallest, near))
    proposals = list(dict.fromkeys([*proposals, *believed]))
    yield from in_batches(proposals, batch)


def _within(space: SearchSpace, losses: Sequence[NDArray[np.float64]], threshold: float) -> Scheme:
    """The smallest count of every group whose drop is at most ``threshold``."""
    places = [int((loss <= threshold).argmax()) for loss in losses]  # drops fall: the first that is
    kept = tuple(group.counts[place] for group, place in zip(space.groups, places, strict=True))
    return Scheme(kept, space.granularity)
