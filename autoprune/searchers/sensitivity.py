"""Sensitivity analysis: what does each group's cut cost on its own, and which cuts are the cheapest together?"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.allocate import allocate
from autoprune.space import Group, SearchSpace
from autoprune.trial import Trial


@dataclass(frozen=True)
class Table:
    """The drop of reward when one group alone is cut, at some of its counts.

    Per group ``counts`` ascend to the largest legal one, and ``drops`` fall, never below 0, to the 0 of the
    network in which no group is cut.
    """

    counts: tuple[tuple[int, ...], ...]
    drops: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.drops):
            raise UserError(f"a table has counts of {len(self.counts)} groups and drops of {len(self.drops)}")
        for g, (counts, drops) in enumerate(zip(self.counts, self.drops, strict=True)):
            if not counts or list(counts) != sorted(set(counts)):
                raise UserError(f"counts[{g}] = {counts}: a group of a table has ascending counts")
            falls = len(drops) == len(counts) and all(a >= b for a, b in zip(drops[:-1], drops[1:], strict=True))
            if not (falls and drops[-1] == 0 and math.isfinite(drops[0])):
                raise UserError(f"drops[{g}] = {drops}: one finite drop per count, falling to 0, is needed")

    def drop(self, group: int, counts: int | Sequence[int]) -> NDArray[np.float64]:
        """The drops at any counts of a group, on straight lines over the logarithm of the count."""
        return np.interp(np.log(counts), np.log(self.counts[group]), self.drops[group])

    def losses(self, space: SearchSpace) -> list[NDArray[np.float64]]:
        """Per group the drop at each of its legal counts."""
        return [self.drop(g, group.counts) for g, group in enumerate(space.groups)]


def sensitivity(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    points: int = 3,
) -> Proposals:
    budget.check()
    drops = yield from table(space, batch=batch, points=points)
    found = dict.fromkeys([allocate(space, budget, drops.losses(space)), budget.fit(np.ones(len(space)))])
    for at in range(0, len(found), batch):
        yield list(found)[at : at + batch]


def table(space: SearchSpace, *, batch: int, points: int) -> Generator[list[Scheme], list[Trial], Table]:
    """doc"""
    if points < 1:
        raise UserError(f"points={points}: at least one count of every group must be measured")
    (reference,) = yield [space.largest]
    dense = _worth(reference)
    grids = [_grid(group, points) for group in space.groups]
    rewards: list[dict[int, float]] = [{} for _ in grids]
    for place in range(points):
        entries = [
            (g, grid[place])
            for g, grid in enumerate(grids)
            if place < len(grid) and not any(reward >= dense for reward in rewards[g].values())
        ]
        for at in range(0, len(entries), batch):
            part = entries[at : at + batch]
            trials = yield [space.largest.replace(g, count) for g, count in part]
            for (g, count), trial in zip(part, trials, strict=True):
                rewards[g][count] = _worth(trial)
    return _monotone(space, dense, rewards)


def _worth(trial: Trial) -> float:
    """The reward, NaN if there is none."""
    return trial.reward if math.isfinite(trial.reward) and not trial.failed else math.nan


def _grid(group: Group, points: int) -> list[int]:
    """At most ``points`` counts below the largest, evenly spaced from the smallest on."""
    last = len(group.counts) - 1
    places = np.unique(np.linspace(0, last, points + 1)[:-1].round().astype(int))
    return [group.counts[i] for i in places if i < last]


def _monotone(space: SearchSpace, dense: float, rewards: Sequence[Mapping[int, float]]) -> Table:
    known = [reward for row in rewards for reward in row.values() if math.isfinite(reward)]
    top = dense if math.isfinite(dense) else max(known, default=0.0)
    worst = max((top - reward for reward in known), default=0.0)
    dread = len(space) * worst if 0 < worst * len(space) < math.inf else 1.0
    counts, drops = [], []
    for group, row in zip(space.groups, rewards, strict=True):
        column = [(group.counts[-1], 0.0)]
        failed: list[int] = []
        for count in sorted(row, reverse=True):
            if math.isnan(row[count]):
                failed.append(count)
                continue
            drop = max(column[-1][1], top - row[count])
            column += [(one, drop) for one in [*failed, count]]
            failed = []
        column += [(one, dread) for one in failed]
        counts.append(tuple(count for count, _ in reversed(column)))
        drops.append(tuple(drop for _, drop in reversed(column)))
    return Table(tuple(counts), tuple(drops))
