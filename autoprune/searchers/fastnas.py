"""FastNAS, the pruning of NVIDIA's Model Optimizer: one threshold on what any group alone may cost."""

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
from autoprune.searchers.sensitivity import table
from autoprune.space import SearchSpace


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
    if neighbours < 0:
        raise UserError(f"fastnas: neighbours={neighbours} must not be negative")
    budget.check()
    drops = yield from table(space, batch=batch, points=points)
    losses = drops.losses(space)
    thresholds = np.unique(np.concatenate(losses))

    def below(threshold: float) -> Scheme:
        return _below(space, losses, threshold)

    least = bisect_left(thresholds, True, key=lambda threshold: budget.allows(below(threshold)))
    tau = float(thresholds[least])
    over = below(float(thresholds[least - 1])) if least else space.largest
    proposals = [fill(budget, below(tau), over)]
    step = 1.25
    for i in range(1, neighbours // 2 + 1):
        for near in (tau * step**i, tau / step**i):
            scheme = below(near)
            proposals.append(fill(budget, scheme, space.largest) if budget.allows(scheme) else fill(budget, space.smallest, scheme))
    proposals = list(dict.fromkeys(proposals))
    for at in range(0, len(proposals), batch):
        yield proposals[at : at + batch]


def _below(space: SearchSpace, losses: Sequence[NDArray[np.float64]], threshold: float) -> Scheme:
    """The smallest count of every group whose loss is at most ``threshold``."""
    return Scheme(
        tuple(group.counts[int((loss <= threshold).argmax())] for group, loss in zip(space.groups, losses, strict=True)),
        space.granularity,
    )
