"""SPDY (Frantar and Alistarh, ICML 2022): a solver divides the budget, a search learns how much each group matters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.allocate import allocator
from autoprune.searchers.sensitivity import table
from autoprune.space import SearchSpace


def spdy(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    prior: Literal["quadratic", "measured"] = "quadratic",
    random: int = 16,
    share: float = 0.1,
    patience: int = 32,
    points: int = 3,
    shape: str = "log",
) -> Proposals:
    budget.check()
    solver = allocator(space, budget)
    rng = np.random.default_rng(seed)
    if prior == "measured":
        errors = (yield from table(space, batch=batch, points=points)).losses(space)
    else:
        errors = [_quadratic(group.counts, shape) for group in space.groups]

    def solve(c):
        return solver([a * e for a, e in zip(c, errors, strict=True)])

    n = len(space)
    best, centre = -math.inf, np.full(n, 0.5)
    seen = set()
    pending = [centre] + [rng.random(n) for _ in range(random)]
    k, fruitless = max(1, round(share * n)), 0
    first = True
    while True:
        if pending:
            draws, pending = pending[:batch], pending[batch:]
            search = False
        else:
            search = True
            draws = []
            for _ in range(batch):
                c = centre.copy()
                c[rng.choice(n, k, replace=False)] = rng.random(k)
                draws.append(c)
        schemes = [solve(c) for c in draws]
        trials = yield schemes
        better = False
        for c, t in zip(draws, trials):
            if t.reward > best:
                best, centre, better = t.reward, c, True
        if search:
            fruitless = 0 if better else fruitless + len(draws)
            if fruitless >= patience and k > 1:
                k, fruitless = k - 1, 0


def _quadratic(counts: Sequence[int], shape) -> NDArray[np.float64]:
    kept = np.array(counts, dtype=float)
    if len(kept) == 1: return np.zeros(1)
    if shape == "log":
        return (np.log(kept / kept[-1]) / np.log(kept[0] / kept[-1])) ** 2
    if shape == "logabs":
        return np.log(kept / kept[-1])  ** 2
    return ((kept[-1] - kept) / (kept[-1] - kept[0])) ** 2
