"""Racing: a candidate that cannot win any more is not looked at to the end.

Losses of two networks on the same images go together, so their difference is known long before either of them is
(Maron and Moore, NIPS 1993, race models; the paired t test is that of F-Race, Birattari et al., GECCO 2002). After some
of the validation batches, in their fixed order, a one-sided paired t test asks whether the candidate's mean loss on all
of them can still be lower than the best scheme's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from autoprune.errors import UserError

FIRST = 4  # batches before the first look
GROWTH = 1.5  # from one look to the next: every look costs a part of the error probability


@dataclass(frozen=True)
class Race:
    """What a candidate has to beat: the best scheme's mean loss on every validation batch, in their order.

    ``error`` bounds the probability that a candidate is stopped that would have been better in the end, over all looks
    at it together (Bonferroni), if the differences between batches are about normal. Batches count alike, although the
    last may be smaller. Without ``losses`` there is nobody to beat yet, and every candidate runs to the end.
    """

    error: float
    losses: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.error < 0.5:
            raise UserError(f"race = {self.error}: the probability of stopping a better candidate lies in (0, 0.5)")

    @cached_property
    def looks(self) -> tuple[int, ...]:
        """After how many batches it is asked whether to go on."""
        counts = (math.ceil(FIRST * GROWTH**number) for number in range(len(self.losses)))
        return tuple(takewhile(lambda count: count < len(self.losses), counts))

    def is_lost(self, losses: Sequence[float]) -> bool:
        """Whether a candidate with these mean losses on the first batches is to be stopped here.

        With d the n differences so far, of N, it is stopped when mean(d) > t s(d) sqrt((1 - n / N) / n), t the quantile
        of Student's distribution with n - 1 degrees of freedom at 1 - error / number of looks. The factor 1 - n / N is
        there because the batches are drawn from those N and no others: what counts is the mean over all of them.
        """
        seen, whole = len(losses), len(self.losses)
        if seen not in self.looks:
            return False
        from scipy.special import stdtrit

        gaps = self._gaps(losses)
        mean = sum(gaps) / seen
        variance = sum((gap - mean) ** 2 for gap in gaps) / (seen - 1)
        quantile = float(stdtrit(seen - 1, 1 - self.error / len(self.looks)))
        return mean > quantile * math.sqrt(variance * (1 - seen / whole) / seen)

    def expected(self, losses: Sequence[float]) -> float:
        """What a stopped candidate would lose on all batches: the best scheme's loss and the mean difference so far."""
        gaps = self._gaps(losses)
        return sum(self.losses) / len(self.losses) + sum(gaps) / len(gaps)

    def _gaps(self, losses: Sequence[float]) -> list[float]:
        return [mine - best for mine, best in zip(losses, self.losses, strict=False)]
