"""How sparse a network is after every round of pruning: the algebra of rates, in one place.

What is constant in a round is the share of the *remaining* weights that stays. To end with 1 - P of them after n
rounds, (1 - P)^(1/n) must stay in each: 90 % in 10 rounds removes 20.6 % of what is left every time, not 9 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from autoprune.errors import UserError


def one_shot(sparsity: float, rounds: int) -> list[float]:
    """All in the first round; the others only train."""
    return [sparsity] * rounds


def geometric(sparsity: float, rounds: int) -> list[float]:
    """The same share of what remains in every round (Han et al. 2015; Frankle and Carbin 2019)."""
    return [*(1 - (1 - sparsity) ** (number / rounds) for number in range(1, rounds)), sparsity]


def cubic(sparsity: float, rounds: int) -> list[float]:
    """Fast while much is redundant, then ever more slowly: P (1 - (1 - t)^3) (Zhu and Gupta 2017, equation 1)."""
    return [sparsity * (1 - (1 - number / rounds) ** 3) for number in range(1, rounds + 1)]


SCHEDULES: Mapping[str, Callable[[float, int], list[float]]] = {
    "one_shot": one_shot,
    "geometric": geometric,
    "cubic": cubic,
}


def sparsities(schedule: str, sparsity: float, rounds: int) -> list[float]:
    """The sparsity after each of so many rounds, never falling, the last one as asked."""
    _check(sparsity)
    if schedule not in SCHEDULES:
        raise UserError(f"schedule {schedule!r} is unknown: use one of {', '.join(SCHEDULES)}")
    if rounds < 1:
        raise UserError(f"rounds = {rounds}: pruning takes at least 1")
    return SCHEDULES[schedule](sparsity, rounds)


def shrinking(sparsity: float, share: float) -> list[float]:
    """The sparsity after each round that removes ``share`` of what remains, as many as are needed.

    The last one ends at ``sparsity`` and removes less than the others, if it must.
    """
    _check(sparsity)
    if not 0 < share < 1:
        raise UserError(f"share = {share}: a round removes a share of what remains, between 0 and 1")
    rounds = max(1, math.ceil(math.log(1 - sparsity) / math.log(1 - share) - 1e-9))
    return [*(1 - (1 - share) ** number for number in range(1, rounds)), sparsity]


def _check(sparsity: float) -> None:
    if not 0 <= sparsity < 1:
        raise UserError(f"sparsity {sparsity!r}: the share of weights to remove is at least 0 and below 1")
