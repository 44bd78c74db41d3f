"""EvoPress (Sieberling et al., ICML 2025): one group goes a level up, another a level down, the budget stays full."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Generator, Sequence

import numpy as np

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.fidelity import Batch, Fidelity
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.asking import in_batches
from autoprune.searchers.exchange import parties, spent
from autoprune.searchers.ranking import starts
from autoprune.space import SearchSpace
from autoprune.trial import Trial

DRAWS = 16  # children drawn for each that is wanted before their surroundings count as known


def levels(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    step: float = 0.5,
    swaps: int = 3,
    generation: int = 16,
    stages: int = 3,
) -> Proposals:
    """An elitist (1 + ``generation``) search that moves groups along a fixed grid of levels.

    A level is ``step`` of the load that a group has on average: the grid of a group are the counts that lie so far
    apart in load, seen from equal rates, or one legal step where that is more. A child of the best scheme has some
    groups one level up and as many others one level down, the smaller of two uniform draws from 1 to ``swaps``. Known
    children are not measured again, and the search ends when it draws no others. It begins with equal rates, as
    EvoPress does, and with what the hints offer: the rankings of unit scores and the start schemes.

    A generation is selected in ``stages`` on more and more data: all children on few images, the best quarter of
    them on four times as many, and so on; those of the last stage are measured in full. With 16 children and 3
    stages, 16 see a sixteenth of the images, 4 a quarter, and one is a full trial. EvoPress draws 32 to 128 children
    and decides the stages' data by hand. ``stages=1`` measures every child in full.

    Levels of EvoPress are equal in weights, so that a swap keeps the budget exactly. MACs are products of widths, and
    a level is worth more where neighbours are wide: after a swap the groups that went down are cut further if the
    budget asks for it, and what they cut too much goes to those that went up. The searcher "swap" adapts the size of
    its moves and rules children out by regression instead.
    """
    if not (0 < step < math.inf and swaps >= 1 and generation >= 1 and stages >= 1):
        raise UserError(
            f"levels: step={step} must be positive, swaps={swaps}, generation={generation} and stages={stages} "
            "at least 1"
        )
    rng = np.random.default_rng(seed)
    begin = list(dict.fromkeys(starts(space, budget, hints)))
    grids = [_grid(budget, begin[0], g, step / len(space)) for g in range(len(space))]
    parent, reward = begin[0], -math.inf
    seen = set(begin)
    children = begin
    while children:
        chosen = children if children is begin else (yield from _selected(children, stages, batch))
        for trial in (yield from in_batches(chosen, batch)):
            if not trial.failed and trial.reward > reward:
                parent, reward = trial.scheme, trial.reward
        children = []
        for _ in range(DRAWS * generation):
            child = _child(budget, grids, parent, swaps, rng)
            if child is not None and child not in seen:
                seen.add(child)
                children.append(child)
            if len(children) == generation:
                break


def _selected(
    children: list[Scheme], stages: int, batch: int
) -> Generator[list[Scheme] | Batch, list[Trial], list[Scheme]]:
    """The children that are worth a full measurement: in every stage a quarter stays and sees four times as much."""
    for stage in range(stages - 1, 0, -1):
        if len(children) == 1:
            break
        trials = yield from in_batches(children, batch, Fidelity(share=0.25**stage))
        best_first = sorted(trials, key=lambda trial: trial.reward, reverse=True)
        children = [trial.scheme for trial in best_first[: math.ceil(len(children) / 4)]]
    return children


def _grid(budget: Budget, scheme: Scheme, g: int, step: float) -> list[int]:
    """Counts of a group that are ``step`` of load apart, or one legal step if that is more, seen from a scheme."""
    counts = budget.space.groups[g].counts
    loads = [budget.load(scheme.replace(g, count)) for count in counts]
    here = counts.index(scheme.kept[g])
    places = [here]
    while places[-1] + 1 < len(counts):
        above = bisect_right(loads, loads[places[-1]] + step) - 1
        places.append(max(above, places[-1] + 1))
    while places[0] > 0:
        below = bisect_left(loads, loads[places[0]] - step)
        places.insert(0, min(below, places[0] - 1))
    return [counts[i] for i in places]


def _child(
    budget: Budget, grids: Sequence[Sequence[int]], parent: Scheme, swaps: int, rng: np.random.Generator
) -> Scheme | None:
    """Some groups go up one level and as many others down; None where they cannot."""
    up, down = parties(parent, grids, swaps, rng)
    child = parent
    for g in up:
        child = child.replace(g, grids[g][bisect_right(grids[g], child.kept[g])])
    for g in down:
        child = child.replace(g, grids[g][bisect_left(grids[g], child.kept[g]) - 1])
    for g in down:
        if not budget.allows(child):
            child = budget.cut(child, g, budget.load(child) - 1) or child.replace(g, grids[g][0])
    return spent(budget, child, up)
