"""Local search that moves budget between groups, after EvoPress (Sieberling et al., ICML 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.asking import best_of, in_batches, usable
from autoprune.searchers.exchange import exchange
from autoprune.searchers.ranking import starts
from autoprune.space import SearchSpace
from autoprune.trial import Trial

WIDEST = 0.5


def swap(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    step: float = 0.25,
    swaps: int = 3,
    screen: int = 8,
) -> Proposals:
    """An elitist (1 + ``batch``) search whose every candidate uses the whole budget.

    It begins with equal rates, the rankings of the unit scores, the start schemes, and random rates that
    fill the batch. From then on a child of the best scheme lets a few groups grow and as many others pay
    for it (at most ``swaps`` each, small numbers being likelier, as in EvoPress).

    A growing group gains up to ``step`` of its width: doubled after a round that found something better,
    halved after one that did not. EvoPress moves one level of a fixed database instead, and measures 32 to
    128 children a generation at rising fidelity. Where trials are dear, most children can be ruled out
    without one: ``screen`` children are drawn for each that is measured, and those are chosen that a
    regression on the latest trials expects most of. ``screen=1`` measures whatever is drawn.
    """
    if not 0 < step <= WIDEST or swaps < 1 or screen < 1:
        raise UserError(
            f"swap: step={step} must lie in (0, {WIDEST}], swaps={swaps} and screen={screen} must be at least 1"
        )
    rng = np.random.default_rng(seed)
    begin = starts(space, budget, hints)
    begin += [budget.fit(rng.uniform(0.2, 1.0, len(space))) for _ in range(batch - len(begin))]
    begin = list(dict.fromkeys(begin))
    seen = set(begin)
    told = usable((yield from in_batches(begin, batch)))
    best = best_of(told)

    narrowest = 1 / int(space.widths.max())
    while True:
        parent = begin[0] if best is None else best.scheme
        drawn = (exchange(budget, parent, step, swaps, rng) for _ in range(screen * batch))
        children = list(dict.fromkeys(child for child in drawn if child is not None and child not in seen))
        if not children:
            if step >= WIDEST:
                return  # nothing new even far away
            step = min(2 * step, WIDEST)
            continue
        if best is not None:
            promise = _promise(space, best, told[-8 * len(space) :], children)
            children = [children[i] for i in np.argsort(-promise, kind="stable")]
        children = children[:batch]
        seen.update(children)
        told += usable((yield children))
        previous, best = best, best_of(told)
        step = max(step / 2, narrowest) if best is previous else min(2 * step, WIDEST)


def _promise(space: SearchSpace, best: Trial, told: Sequence[Trial], children: Sequence[Scheme]) -> NDArray[np.float64]:
    """Expected gain of the children over the best trial, up to a positive factor.

    Ridge regression on differences to the best, additive over the groups. Two features of a rate, its
    logarithm and its inverse square root, give every group a diminishing return of its own.
    """

    def differences(schemes: Sequence[Scheme]) -> NDArray[np.float64]:
        rates = np.array([space.rates(scheme) for scheme in (best.scheme, *schemes)])
        features: NDArray[np.float64] = np.hstack([np.log(rates), rates**-0.5])
        return features[1:] - features[:1]

    x = differences([trial.scheme for trial in told])
    y = np.array([trial.reward - best.reward for trial in told])
    scale = np.sqrt((x**2).mean(axis=0)) + 1e-9
    x /= scale
    y /= np.abs(y).max() + 1e-300
    slope = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)
    gain: NDArray[np.float64] = differences(children) / scale @ slope
    return gain.round(6)  # last bits may depend on the number of threads: they must decide nothing
