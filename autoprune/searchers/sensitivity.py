"""Sensitivity analysis: what does cutting each group alone cost, and which cuts are the cheapest together?"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.fidelity import Batch
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.allocate import allocator
from autoprune.searchers.asking import in_batches
from autoprune.searchers.ranking import starts
from autoprune.space import Group, SearchSpace
from autoprune.trial import Trial

WORST = 1e300  # the difference of two finite rewards may be infinite


@dataclass(frozen=True)
class Table:
    """How far the reward drops when one group alone is cut, at some of its counts.

    Per group ``counts`` ascend from the smallest legal one to the largest, and ``drops``, in units of the
    reward, fall to the 0 of the network in which nothing is cut.
    """

    counts: tuple[tuple[int, ...], ...]
    drops: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.drops):
            raise UserError(f"a table has counts of {len(self.counts)} groups and drops of {len(self.drops)}")
        for g, (counts, drops) in enumerate(zip(self.counts, self.drops, strict=True)):
            if not counts or counts[0] < 1 or list(counts) != sorted(set(counts)):
                raise UserError(f"counts[{g}] = {counts}: a group of a table has ascending, positive counts")
            falls = len(drops) == len(counts) and list(drops) == sorted(drops, reverse=True)
            if not (falls and drops[-1] == 0 and math.isfinite(drops[0])):
                raise UserError(f"drops[{g}] = {drops}: must be one finite number per count, falling to 0")

    def drop(self, group: int, count: int) -> float:
        """The drop at any count of a group: between two entries, straight over the logarithm of the count.

        Damage rises faster the less is left; over the logarithm few entries follow it better than over the count.
        """
        counts = self.counts[group]
        if not counts[0] <= count <= counts[-1]:
            raise UserError(f"count {count} of group {group}: its table goes from {counts[0]} to {counts[-1]}")
        return float(self._between(group, [count])[0])

    def losses(self, space: SearchSpace) -> list[NDArray[np.float64]]:
        """Per group of the measured space, the drop at each legal count."""
        return [self._between(g, group.counts) for g, group in enumerate(space.groups)]

    def _between(self, group: int, counts: Sequence[int]) -> NDArray[np.float64]:
        return np.interp(np.log(counts), np.log(self.counts[group]), self.drops[group])


def sensitivity(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    points: int = 3,
) -> Proposals:
    """Measures every group's sensitivity, and ends with the allocation that follows; the seed plays no part.

    ``points`` counts of every group are measured, each with nothing else cut (see :func:`table`), and the
    drops of reward are added up as if groups did not interact. The scheme of the least sum under the budget
    is proposed, and beside it equal rates and what the hints offer: the rankings of unit scores, the start schemes.

    This is the analysis of NNI's sensitivity pruner, but not its allocation: that one takes from every layer the first
    ratio that loses five points of accuracy, scales all of them to remove a tenth of the weights, and starts again.

    Nothing is affordable before the last batch: allow groups x ``points`` + 5 trials. The table does not depend on
    the budget, so in the same ledger it is free for every further budget, and for the other searchers that use it.
    """
    believed = starts(space, budget, hints)
    drops = yield from table(space, batch=batch, points=points)
    best = allocator(space, budget)(drops.losses(space))
    proposals = list(dict.fromkeys([best, *believed]))
    yield from in_batches(proposals, batch)


def table(space: SearchSpace, *, batch: int, points: int) -> Generator[list[Scheme] | Batch, list[Trial], Table]:
    """Measures how far the reward drops when one group alone is cut.

    Searchers begin with ``drops = yield from table(space, batch=batch, points=points)``. The uncut network comes
    first, then each group's smallest count, then the next larger of its ``points`` counts, and so on. A group that
    loses nothing at some count is not measured at larger ones. What is measured, and in which order, does not depend
    on the batch.

    The drop never falls when more is cut: it is the largest one measured at this or any larger count. A count that
    failed is taken to be as bad as the next smaller one that did not, or, if there is none, worse than the
    worst of all groups together. Where the uncut network failed, drops are from the best reward measured.
    """
    if points < 1:
        raise UserError(f"points={points}: at least one count of every group must be measured")
    (uncut,) = yield [space.largest]
    dense = _worth(uncut)
    grids = [sampled(group, points) for group in space.groups]
    rewards: list[dict[int, float]] = [{} for _ in grids]
    for place in range(points):
        entries = [
            (g, grid[place])
            for g, grid in enumerate(grids)
            if place < len(grid) and not any(reward >= dense for reward in rewards[g].values())
        ]
        trials = yield from in_batches([space.largest.replace(g, count) for g, count in entries], batch)
        for (g, count), trial in zip(entries, trials, strict=True):
            rewards[g][count] = _worth(trial)
    return _table(space, dense, rewards)


def _worth(trial: Trial) -> float:
    """The reward, NaN where there is none."""
    return trial.reward if math.isfinite(trial.reward) and not trial.failed else math.nan


def sampled(group: Group, points: int) -> list[int]:
    """The legal counts that are measured: at most ``points``, evenly spaced from the smallest, never the largest."""
    last = len(group.counts) - 1
    places = np.unique(np.linspace(0, last, points + 1)[:-1].round().astype(np.int64))
    return [group.counts[place] for place in places if place < last]


def _table(space: SearchSpace, dense: float, rewards: Sequence[Mapping[int, float]]) -> Table:
    """The table of the rewards by group and count, made monotone and completed where one is NaN."""
    known = [reward for measured in rewards for reward in measured.values() if math.isfinite(reward)]
    top = max(known, default=0.0) if math.isnan(dense) else dense
    worst = max((top - reward for reward in known), default=0.0)
    dreadful = min((len(space) + 1) * worst, WORST) if worst > 0 else 1.0
    counts, drops = [], []
    for group, measured in zip(space.groups, rewards, strict=True):
        column = {group.counts[-1]: 0.0}
        failed: list[int] = []
        for count in sorted(measured, reverse=True):
            failed.append(count)
            if not math.isnan(measured[count]):
                drop = max(min(top - measured[count], WORST), *column.values())
                column |= dict.fromkeys(failed, drop)
                failed = []
        column |= dict.fromkeys(failed, dreadful)
        counts.append(tuple(sorted(column)))
        drops.append(tuple(column[count] for count in sorted(column)))
    return Table(tuple(counts), tuple(drops))
