"""What the trials so far say about schemes not yet measured: a curve per group, and a smooth remainder."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from autoprune.hints import Hints
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace
from autoprune.trial import Trial

Array = NDArray[np.float64]

OWN = 2  # features of a count that have a weight of the group's own
CURVES, REST, NOISE = (1.0, 8.0), (0.1, 1.0), (0.01, 0.1)  # variances that the likelihood chooses among
LEVEL = 0.1  # variance of the mean loss, beyond the mean of the trials
REACH = 0.7  # of the spread of the trials: how far the remainder is alike
DOUBT = 2.0  # median losses from the best: so far away the noise counts twice
JITTER = 1e-6
FARTHEST = 1e6  # median losses from the best


@dataclass(frozen=True, eq=False)
class Features:
    """What the counts of a space are described by.

    ``of`` holds, per group, a row for each legal count: -log(rate) and rate^-1/2 - 1, two ways in which damage rises
    faster the less is left, and, where there are unit scores, the score that is lost: as it is, and as a part of
    the group's. The features of a scheme are the first two of every group, and the sums of all over the groups.
    """

    space: SearchSpace
    of: tuple[Array, ...]

    @classmethod
    def make(cls, space: SearchSpace, hints: Hints) -> Features:
        """The features of a space, with scores if the hints have any."""
        tables = []
        for g, group in enumerate(space.groups):
            rates = np.asarray(group.counts) / group.width
            columns = [-np.log(rates), rates**-0.5 - 1]
            if hints.scores:
                best_first = np.sort(np.asarray(hints.scores[g], np.float64))[::-1]
                kept = np.cumsum(best_first)[np.asarray(group.counts) // group.unit - 1]
                lost = kept[-1] - kept
                columns += [lost, lost / (np.abs(lost).max() or 1.0)]
            tables.append(np.stack(columns, axis=1))
        return cls(space, tuple(tables))

    def __call__(self, schemes: Sequence[Scheme]) -> Array:
        """One row per scheme."""
        rows = np.array(
            [
                [table[min(bisect_left(group.counts, count), len(table) - 1)] for table, group, count in parts]
                for parts in (zip(self.of, self.space.groups, scheme.kept, strict=True) for scheme in schemes)
            ]
        )
        return np.hstack([rows[:, :, :OWN].reshape(len(rows), -1), rows.sum(axis=1)])

    def curves(self, weights: Array) -> list[Array]:
        """Per group the loss of each legal count that weights of the features amount to: never less for less kept."""
        own = weights[: OWN * len(self.of)].reshape(len(self.of), OWN)
        curves = []
        for table, few in zip(self.of, own, strict=True):
            loss = table[:, :OWN] @ few + table @ weights[OWN * len(self.of) :]
            curves.append(np.maximum.accumulate((loss - loss[-1])[::-1])[::-1])
        return curves


class Surrogate:
    """A Gaussian process through the trials; losses are in medians of the losses above the best trial.

    Loss = a level + the weighted features + a remainder that is alike for schemes of similar rates (Matérn 5/2 over
    the logarithms of the rates), as groups interact, + noise. What is far from the best counts less: noise there is
    larger. How much each of the parts varies is what makes the trials likeliest; on features that all groups share,
    few trials already say something about every group (Rasmussen and Williams, 2006, chapters 2 and 5).
    """

    def __init__(self, features: Features, trials: Sequence[Trial]) -> None:
        self._features = features
        rewards = np.array([trial.reward for trial in trials])
        with np.errstate(over="ignore"):
            above = rewards.max() - rewards
            loss = np.minimum(above / (np.median(above) or above.max() or 1.0), FARTHEST)
        doubt = 1 + (loss / DOUBT) ** 2
        self._mean = float((loss / doubt).sum() / (1 / doubt).sum())
        schemes = [trial.scheme for trial in trials]
        rows = features(schemes)
        self._centre = rows.mean(axis=0)
        self._scale = (np.sqrt(((rows - self._centre) ** 2).mean(axis=0)) + 1e-9) * math.sqrt(rows.shape[1])
        self._rows = (rows - self._centre) / self._scale
        self._rates = self._logarithms(schemes)
        self._reach = REACH * math.sqrt(self._rates.var(axis=0).sum()) + 1e-9
        curves, rest = self._rows @ self._rows.T, _matern(self._rates, self._rates, self._reach)

        best = -math.inf
        for chosen in product(CURVES, REST, NOISE):
            a, b, noise = chosen
            factor = np.linalg.cholesky(a * curves + b * rest + noise * np.diag(doubt) + LEVEL)
            white = np.linalg.solve(factor, loss - self._mean)
            variance = float(white @ white) / len(white) + 1e-300
            likelihood = -0.5 * len(white) * math.log(variance) - float(np.log(np.diag(factor)).sum())
            if likelihood > best + 1e-6:
                best, self._parts, self._factor, self._variance = likelihood, (a, b), factor, variance
        self._pull = np.linalg.solve(self._factor.T, np.linalg.solve(self._factor, loss - self._mean))

    def draws(self, schemes: Sequence[Scheme], number: int, rng: np.random.Generator, boldness: float = 1.0) -> Array:
        """Losses that the schemes may have together, given the trials: ``number`` rows, a column for each scheme.

        ``boldness`` scales how far they are from what is expected.
        """
        a, b = self._parts
        rows, rates = (self._features(schemes) - self._centre) / self._scale, self._logarithms(schemes)
        known = a * rows @ self._rows.T + b * _matern(rates, self._rates, self._reach) + LEVEL
        prior = a * rows @ rows.T + b * _matern(rates, rates, self._reach) + LEVEL
        seen = np.linalg.solve(self._factor, known.T)
        covariance = boldness**2 * (prior - seen.T @ seen)
        return self._sample(self._mean + known @ self._pull, covariance, number, rng)

    def curves(self, number: int, rng: np.random.Generator) -> list[list[Array]]:
        """``number`` times a loss for each count of each group, such as the trials allow; the remainder is left out."""
        a, _ = self._parts
        seen = np.linalg.solve(self._factor, a * self._rows)
        spread = a * np.eye(self._rows.shape[1]) - seen.T @ seen
        drawn = self._sample(a * self._rows.T @ self._pull, spread, number, rng)
        return [self._features.curves(weights / self._scale) for weights in drawn]

    def _sample(self, mean: Array, covariance: Array, number: int, rng: np.random.Generator) -> Array:
        safe = covariance + JITTER * (1 + np.trace(covariance) / len(mean)) * np.eye(len(mean))
        factor = np.linalg.cholesky(safe) * math.sqrt(self._variance)
        drawn: Array = mean + rng.normal(size=(number, len(mean))) @ factor.T
        return drawn.round(6)  # last bits may depend on the number of threads: they must decide nothing

    def _logarithms(self, schemes: Sequence[Scheme]) -> Array:
        return np.log([self._features.space.rates(scheme) for scheme in schemes])


def _matern(one: Array, other: Array, reach: float) -> Array:
    """How alike two points are, as a function of their distance in units of ``reach``."""
    squared = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * one @ other.T
    far = np.sqrt(5 * np.maximum(squared, 0)) / reach
    alike: Array = (1 + far + far**2 / 3) * np.exp(-far)
    return alike
