"""How schemes are proposed."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np

from autoprune.budget import Budget
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace
from autoprune.trial import Trial


def one_at_a_time(
    space: SearchSpace, budget: Budget, *, seed: int, hints: Hints, batch: int = 8, reach: float = 0.3
) -> Generator[list[Scheme], Sequence[Trial], None]:
    """Hill climbing along one coordinate: each proposal moves the rate of one group by up to ``reach``."""
    rng = np.random.default_rng(seed)
    best, rates = -np.inf, space.rates(budget.fit(np.ones(len(space))))
    while True:
        moved = np.tile(rates, (batch, 1))
        groups = rng.integers(len(space), size=batch)
        moved[np.arange(batch), groups] += rng.uniform(-reach, reach, batch)
        trials = yield [budget.fit(np.clip(row, 0.05, 1.0)) for row in moved]
        for trial in trials:
            if not trial.failed and trial.reward > best:
                best, rates = trial.reward, space.rates(trial.scheme)
