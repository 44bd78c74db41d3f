"""Simulated annealing of the kept rates, after AutoCompress (Liu et al., AAAI 2020)."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.ranking import starts
from autoprune.space import SearchSpace

COLD = 0.02  # at this temperature one in e^50 of the typical losses is accepted
DRAWS = 8  # neighbours drawn for each that is wanted, at ever longer reach, before their surroundings count as known
RECENT = 64


def annealing(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    temperature: float = 0.5,
    cooling: float = 0.98,
    reach: float = 0.3,
    share: float = 0.3,
) -> Proposals:
    rng = np.random.default_rng(seed)
    begin = list(dict.fromkeys(starts(space, budget, hints)))
    current, reward = begin[0], -math.inf
    best, best_reward = current, reward
    seen = set(begin)
    children = begin
    heat = temperature
    differences: deque[float] = deque(maxlen=RECENT)
    first = True
    while True:
        trials = []
        for at in range(0, len(children), batch):
            trials += yield children[at : at + batch]
        for trial in trials:
            if not first:
                heat *= cooling
            if trial.failed:
                continue
            worse = reward - trial.reward
            if worse > 0 and math.isfinite(worse):
                differences.append(worse)
            typical = float(np.median(differences)) if differences else 0.0
            chance = rng.random()
            if worse <= 0 or (not first and typical > 0 and chance < math.exp(-worse / (heat * typical))):
                current, reward = trial.scheme, trial.reward
            if trial.reward > best_reward:
                best, best_reward = trial.scheme, trial.reward
        first = False
        if heat < COLD:
            heat = temperature
            current, reward = best, best_reward
        children = []
        extent = reach * max(heat / temperature, 0.1)
        rates = space.rates(current)
        for _ in range(DRAWS * batch):
            moved = rng.random(len(space)) < share
            moved[rng.integers(len(space))] = True
            child = budget.fit(np.clip(rates + moved * rng.uniform(-extent, extent, len(space)), 0.01, 1))
            if child not in seen:
                seen.add(child)
                children.append(child)
                if len(children) == batch:
                    break
            else:
                extent = min(extent * 1.1, 1)
        if not children:
            return
