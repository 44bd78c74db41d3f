"""Equal rates everywhere: what every other searcher has to beat."""

from __future__ import annotations

import numpy as np

from autoprune.budget import Budget
from autoprune.hints import Hints
from autoprune.searchers import Proposals
from autoprune.space import SearchSpace


def uniform(space: SearchSpace, budget: Budget, *, seed: int, hints: Hints, batch: int = 8) -> Proposals:
    """One scheme: the same kept rate in every group, and what rounding leaves of the budget spent."""
    yield [budget.fit(np.ones(len(space)))]
