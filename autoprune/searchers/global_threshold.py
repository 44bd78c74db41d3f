"""One threshold on the scores of all units, as in Network Slimming (Liu et al., ICCV 2017)."""

from __future__ import annotations

import numpy as np

from autoprune.budget import Budget
from autoprune.hints import Hints
from autoprune.searchers import Proposals
from autoprune.searchers.ranking import per_load, ranking
from autoprune.space import SearchSpace


def global_threshold(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    normalise: bool = False,
    per_cost: bool = False,
) -> Proposals:
    """One scheme, without search: every unit that scores above the lowest threshold that the budget allows stays.

    ``normalise`` divides a group's scores by their mean first, so that no group goes because its weights are small
    throughout. Without it the scores are compared as the hints have them, which for those of an
    evaluator means scaled to unit length per group. ``per_cost`` divides a score by what the unit adds to the load
    of the dense network, so that dear units go first.

    Network Slimming compares the scales of batch norms, after training that drew them towards zero; here the
    criterion of the search gives the scores. It states the share of the units that go, here the budget decides
    where the threshold lies. It may empty a layer; here the smallest legal count stays.

    Where the hints hold no scores, no unit is better than another, and rates are equal. The seed plays no part.
    """
    if not hints.scores:
        yield [budget.fit(np.ones(len(space)))]
        return
    budget.check()
    scores = [np.asarray(score, dtype=np.float64) for score in hints.scores]
    if normalise:
        scores = [score / (abs(score.mean()) or 1.0) for score in scores]
    if per_cost:
        scores = per_load(space, budget, scores)
    yield [ranking(space, budget, scores)]
