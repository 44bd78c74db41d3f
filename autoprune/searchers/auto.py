"""The default: local moves, exchanges and SPDY's coefficients, told apart by one model of what trials have shown."""

from __future__ import annotations

import numpy as np

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.allocate import allocator
from autoprune.searchers.asking import best_of, in_batches, usable
from autoprune.searchers.exchange import exchange
from autoprune.searchers.knapsack import filled
from autoprune.searchers.ranking import starts
from autoprune.searchers.surrogate import Features, Surrogate
from autoprune.space import SearchSpace

WIDEST = 0.5
FEW = 6  # groups that a move changes, at most
SWAPS, GROWTH = 3, 0.25  # groups that grow in an exchange, at most, and by how much of their width
WAY = (0.125, 0.25, 0.5, 1.0)  # from the best scheme to one that a model believes in, and may believe in too much
BOLDNESS = 0.5  # of the model's deviations, by which a candidate may be better than expected


def auto(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    moves: int = 64,
    exchanges: int = 64,
    curves: int = 8,
) -> Proposals:
    """What to use when nothing is known about the problem: every candidate uses the whole budget.

    It begins with what costs no search: equal rates, two rankings of the unit scores, the knapsack of the scores and
    the start schemes; random rates fill the batch. From then on the trials of every kind of proposal teach one model of
    the loss (:class:`autoprune.searchers.surrogate.Surrogate`):

    - ``moves`` times, a few groups of the best scheme are scaled up or down and all others pay or gain. The size of
      the moves doubles after a round that found something better and halves after one that did not.
    - ``exchanges`` times, a few groups of it grow and as many pay, while all others keep their very counts (children of
      ``swap``): fitting the budget anew would lose counts that happen to suit their groups.
    - ``curves`` times, a loss curve for each group is drawn from the model, and a solver divides the budget such that
      the losses sum up to the least. This is SPDY, whose coefficients are learnt from whatever was measured, where
      SPDY searches them one by one. Not only that scheme is a candidate but also points on the way to it from the
      best one, for the model knows less the further it looks.

    Of all these candidates those are measured that are best in one joint draw each from the model's posterior (Thompson
    sampling, at half of the model's deviations): what is expected to be good, or may well be. All are measured in full:
    what a quick look says about two similar candidates is hardly more than the model knows by then.
    """
    if moves < 1 or exchanges < 0 or curves < 0:
        raise UserError(
            f"auto: moves={moves} must be at least 1, exchanges={exchanges} and curves={curves} not negative"
        )
    rng = np.random.default_rng(seed)
    begin = starts(space, budget, hints)
    if hints.scores:
        begin.append(filled(space, budget, hints.scores))
    begin += [budget.fit(rng.uniform(0.2, 1.0, len(space))) for _ in range(batch - len(begin))]
    begin = list(dict.fromkeys(begin))
    seen = set(begin)
    told = usable((yield from in_batches(begin, batch)))

    features, allocate = Features.make(space, hints), allocator(space, budget)
    narrowest = 1 / int(space.widths.max())
    step = WIDEST / 2
    best = best_of(told)
    model = Surrogate(features, told) if told else None
    while True:
        parent = begin[0] if best is None else best.scheme
        candidates = [_moved(budget, parent, step, rng) for _ in range(moves)]
        exchanged = (exchange(budget, parent, GROWTH, SWAPS, rng) for _ in range(exchanges))
        candidates += [scheme for scheme in exchanged if scheme is not None]
        for losses in model.curves(curves, rng) if model else ():
            candidates += _towards(budget, parent, allocate(losses))
        candidates = [scheme for scheme in dict.fromkeys(candidates) if scheme not in seen]
        if not candidates:
            if step >= WIDEST:
                return  # nothing new even far away
            step = min(2 * step, WIDEST)
            continue
        chosen = _sampled(model, candidates, batch, rng) if model else candidates[:batch]
        seen.update(chosen)
        told += usable((yield chosen))
        previous, best = best, best_of(told)
        step = max(step / 2, narrowest) if best is previous else min(2 * step, WIDEST)
        model = Surrogate(features, told) if told else None


def _moved(budget: Budget, parent: Scheme, step: float, rng: np.random.Generator) -> Scheme:
    """A few groups, small numbers being likelier, scaled by about ``step``; all others pay for it or gain."""
    rates = budget.space.rates(parent)
    few = min(int(rng.integers(1, FEW + 1, 2).min()), len(rates))
    groups = rng.choice(len(rates), few, replace=False)
    rates[groups] *= np.exp(rng.normal(0, step, few))
    return budget.fit(np.minimum(rates, 1.0))


def _towards(budget: Budget, parent: Scheme, goal: Scheme) -> list[Scheme]:
    """Schemes on the way to a goal, along which ratios change evenly."""
    start, end = budget.space.rates(parent), budget.space.rates(goal)
    return [budget.fit(start ** (1 - part) * end**part) for part in WAY[:-1]] + [goal]


def _sampled(model: Surrogate, candidates: list[Scheme], number: int, rng: np.random.Generator) -> list[Scheme]:
    """The least of one draw after the other, without those chosen before."""
    chosen: list[int] = []
    for losses in model.draws(candidates, min(number, len(candidates)), rng, BOLDNESS):
        losses[chosen] = np.inf
        chosen.append(int(losses.argmin()))
    return [candidates[place] for place in chosen]
