"""SPDY (Frantar and Alistarh, ICML 2022): a solver divides the budget, a search learns how much each group matters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autoprune.budget import Budget
from autoprune.errors import UserError
from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.searchers import Proposals
from autoprune.searchers.allocate import allocator
from autoprune.searchers.asking import in_batches
from autoprune.searchers.ranking import starts
from autoprune.searchers.sensitivity import table
from autoprune.space import Group, SearchSpace
from autoprune.trial import Trial

DRAWS = 2  # coefficients drawn for each scheme that is wanted, before nothing new is expected
Coefficients = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Best:
    """The coefficients whose scheme had the highest reward so far."""

    coefficients: Coefficients
    reward: float = -math.inf


def spdy(
    space: SearchSpace,
    budget: Budget,
    *,
    seed: int,
    hints: Hints,
    batch: int = 8,
    prior: Literal["measured", "quadratic"] = "measured",
    points: int = 3,
    random: int = 16,
    share: float = 0.1,
    patience: int = 32,
) -> Proposals:
    """Searches one coefficient per group; a solver turns them into the scheme, so every one uses the budget up.

    A group's loss at a count is its coefficient, in [0, 1], times its error there, and the solver minimises the sum
    of losses under the budget. Equal coefficients are tried first, then ``random`` uniform draws, and once what needs
    no coefficients: equal rates and what the hints offer. From then on some coefficients of the best draw are drawn
    anew, ``batch`` children at a time: ``share`` of them at first, one less whenever ``patience`` children in a row
    were no better, at last a single one, until no new scheme is found.

    The ``prior`` says what the error is:

    - "quadratic": (i / (I - 1))^2 for the i-th of I levels from dense to sparsest, the levels being geometric in what
      is kept, as in the paper. Nothing is measured beforehand.
    - "measured": the drop of reward when the group alone is cut, measured at ``points`` counts of every group
      (:func:`autoprune.searchers.sensitivity.table`). Nothing is affordable before that table is complete: allow
      groups x ``points`` trials more. The coefficients then only have to correct the table.

    Differences to the paper: the MACs of a channel depend on its neighbours' widths, so the dynamic programme over
    additive times gives way to a price on load that is recounted on the whole scheme, over all legal counts instead
    of 42 levels; 16 random draws and a patience of 32 replace 100 and 100, for trials are dear here; schemes
    measured before are skipped; children come in batches.
    """
    _check(prior, points, random, share, patience)
    begin = starts(space, budget, hints)
    allocate = allocator(space, budget)
    rng = np.random.default_rng(seed)
    if prior == "measured":
        drops = yield from table(space, batch=batch, points=points)
        errors = drops.losses(space)
    else:
        errors = [_quadratic(group) for group in space.groups]

    def solve(coefficients: Coefficients) -> Scheme:
        return allocate([c * error for c, error in zip(coefficients, errors, strict=True)])

    best = Best(np.full(len(space), 0.5))
    draws = iter([best.coefficients, *rng.random((random, len(space)))])
    seen: set[Scheme] = set()
    while found := _unseen(draws, solve, seen, batch):
        trials = yield list(found)
        best = _best(best, found, trials)
    unsolved = [scheme for scheme in dict.fromkeys(begin) if scheme not in seen]
    seen.update(unsolved)
    yield from in_batches(unsolved, batch)

    width, vain = max(1, round(share * len(space))), 0
    while True:
        found = _unseen((_redrawn(best.coefficients, width, rng) for _ in range(DRAWS * batch)), solve, seen, batch)
        if not found and width == len(space):
            return
        if not found:
            width = min(2 * width, len(space))
            continue
        trials = yield list(found)
        before, best = best, _best(best, found, trials)
        vain = vain + len(found) if best is before else 0
        if vain >= patience:
            width, vain = max(1, width - 1), 0


def _check(prior: str, points: int, random: int, share: float, patience: int) -> None:
    rules = (
        (f"prior={prior!r}", prior in ("measured", "quadratic"), '"measured" or "quadratic"'),
        (f"points={points}", points >= 1, "at least 1"),
        (f"random={random}", random >= 0, "not negative"),
        (f"share={share}", 0 < share <= 1, "in (0, 1]"),
        (f"patience={patience}", patience >= 1, "at least 1"),
    )
    for given, holds, rule in rules:
        if not holds:
            raise UserError(f"spdy: {given} must be {rule}")


def _unseen(
    draws: Iterable[Coefficients], solve: Callable[[Coefficients], Scheme], seen: set[Scheme], wanted: int
) -> dict[Scheme, Coefficients]:
    """The first ``wanted`` new schemes that the coefficients lead to; they are seen from now on."""
    found: dict[Scheme, Coefficients] = {}
    for drawn in draws:
        scheme = solve(drawn)
        if scheme not in seen:
            seen.add(scheme)
            found[scheme] = drawn
        if len(found) == wanted:
            break
    return found


def _best(best: Best, found: Mapping[Scheme, Coefficients], trials: Sequence[Trial]) -> Best:
    for trial in trials:
        if not trial.failed and trial.reward > best.reward:
            best = Best(found[trial.scheme], trial.reward)
    return best


def _redrawn(coefficients: Coefficients, width: int, rng: np.random.Generator) -> Coefficients:
    changed = coefficients.copy()
    changed[rng.choice(len(changed), width, replace=False)] = rng.random(width)
    return changed


def _quadratic(group: Group) -> NDArray[np.float64]:
    """0 at the largest count, 1 at the smallest, the square of a straight line over the logarithm."""
    depth = np.log(group.counts[-1] / np.asarray(group.counts, np.float64))
    error: NDArray[np.float64] = (depth / max(depth[0], 1e-9)) ** 2
    return error
