"""Random rates, the sampling of EagleEye (Li et al., ECCV 2020), projected on the budget."""

from __future__ import annotations

import numpy as np

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.searchers import Proposals
from autoprune.space import SearchSpace


def random_rates(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    low: float = 0.2,
    high: float = 1.0,
) -> Proposals:
    """Draws the kept rate of every group uniformly from [``low``, ``high``], for ever, after the start schemes.

    EagleEye's release draws *removed* rates as ``min_rate + U(0, 1) * max_rate``, prunes, and rejects the
    network when its cost misses the target by more than half a percent, which is most of them. Here the
    draw is scaled to the budget instead, so every candidate is measured and uses the budget up; only the
    proportions of the drawn rates matter then, and they lie within ``high / low`` of each other.
    """
    if not 0 < low <= high <= 1:
        raise UserError(f"random: rates are drawn from low={low} to high={high}, but 0 < low <= high <= 1 must hold")
    rng = np.random.default_rng(seed)
    begin = [start if budget.allows(start) else budget.fit(space.rates(start)) for start in hints.starts]
    while True:
        drawn = [budget.fit(rng.uniform(low, high, len(space))) for _ in range(batch - len(begin[:batch]))]
        yield begin[:batch] + drawn
        begin = begin[batch:]
