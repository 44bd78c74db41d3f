"""Simulated annealing of the kept rates, after AutoCompress (Liu et al., AAAI 2020)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence

import numpy as np

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.asking import in_batches, usable
from autoprune.searchers.ranking import starts
from autoprune.space import SearchSpace
from autoprune.trial import Trial

COLD = 0.02
"""Here next to nothing worse is accepted, and the walk is heated again."""
FINEST = 0.1
"""The reach does not shrink below this part of its first value."""
RECENT = 64
"""Losses of reward of which the median is the typical one."""
DRAWS = 8
"""Neighbours drawn for each that is wanted before the surroundings count as known, ..."""
LONGER = 1.1
"""... the reach growing by this factor with each that is."""
LARGEST = 1e300
"""The difference of two finite rewards may be infinite."""


def annealing(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    temperature: float = 0.2,
    cooling: float = 0.98,
    reach: float = 0.5,
    share: float = 0.1,
) -> Proposals:
    """A random walk that accepts losses, fewer and fewer, and begins again where it was best.

    It starts from the best of equal rates, the rankings of unit scores and the start schemes. A neighbour moves the
    kept rates of some groups, each with probability ``share`` and at least one, by up to ``reach``, and is projected
    on the budget. What is no worse than the current scheme becomes the current one; what is worse does so with
    probability exp(-loss / (heat x typical loss)). The typical loss is the median of the latest ones, so that
    acceptance does not depend on the reward's unit: at heat 1 a typical loss is accepted in 37 of 100 cases, at 0.2
    in 1 of 150, and one a tenth as large in 61 of 100.

    Heat starts at ``temperature`` and is multiplied by ``cooling`` with every proposal, and the reach shrinks with it,
    to a tenth at least. When nothing worse is accepted any more, after about 115 proposals by default, both start anew
    from the best scheme so far, for ever. Known schemes are not measured again; the search ends when it draws no
    others.

    The ``batch`` neighbours of a round are all drawn around the scheme that is current when it begins. The rule then
    goes through them in order, each compared with what is current by then; so the batch is part of the walk.

    Differences to the search of AutoCompress as released in NNI: its temperature goes from 100 to 20 while
    accuracies differ by a few points at most, so that hardly any loss is refused; it cools with accepted moves
    only; it draws until a vector hits the target, a share of the weights; and it sorts its rates by layer size, where
    every group here has its own. ADMM training and the rounds of mild compression around it are not part of a search.
    """
    if not (COLD <= temperature < math.inf and 0 < cooling < 1 and 0 < reach <= 1 and 0 <= share <= 1):
        raise UserError(
            f"annealing: temperature={temperature} must be at least {COLD}, cooling={cooling} between 0 and 1, "
            f"reach={reach} above 0 and at most 1, and share={share} from 0 to 1"
        )
    rng = np.random.default_rng(seed)
    begin = list(dict.fromkeys(starts(space, budget, hints)))
    told = yield from in_batches(begin, batch)
    current, reward = max(_worths(told), key=lambda worth: worth[1], default=(begin[0], -math.inf))
    best, highest = current, reward
    losses: deque[float] = deque(maxlen=RECENT)
    seen = set(begin)
    heat = temperature
    while True:
        extent = reach * max(heat / temperature, FINEST)
        children = _neighbours(space, budget, current, extent, share, rng, seen, batch)
        if not children:
            return
        seen.update(children)
        for scheme, value in _worths((yield children)):
            loss = reward - value
            if loss > 0:
                losses.append(min(loss, LARGEST))
            if loss <= 0 or rng.random() < math.exp(-loss / float(np.median(losses)) / heat):
                current, reward = scheme, value
            if value > highest:
                best, highest = scheme, value
        heat *= cooling ** len(children)
        if heat < COLD:
            heat = temperature
            current, reward = best, highest


def _neighbours(
    space: SearchSpace,
    budget: Budget,
    scheme: Scheme,
    extent: float,
    share: float,
    rng: np.random.Generator,
    seen: Collection[Scheme],
    batch: int,
) -> list[Scheme]:
    """New schemes with the budget full, some kept rates moved by up to ``extent``; fewer or none where few are new."""
    found: list[Scheme] = []
    for _ in range(DRAWS * batch):
        moved = rng.random(len(space)) < share
        moved[rng.integers(len(space))] = True
        rates = space.rates(scheme) + moved * rng.uniform(-extent, extent, len(space))
        child = budget.fit(np.clip(rates, 0, 1))
        if child in seen or child in found:
            extent = min(extent * LONGER, 1.0)
            continue
        found.append(child)
        if len(found) == batch:
            break
    return found


def _worths(trials: Sequence[Trial]) -> list[tuple[Scheme, float]]:
    return [(trial.scheme, trial.reward) for trial in usable(trials)]
