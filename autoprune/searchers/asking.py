"""What most searchers do with batches and trials."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

from autoprune.fidelity import FULL, Batch, Fidelity
from autoprune.scheme import Scheme
from autoprune.trial import Trial


def in_batches(
    schemes: Sequence[Scheme], batch: int, fidelity: Fidelity = FULL
) -> Generator[list[Scheme] | Batch, list[Trial], list[Trial]]:
    """Ask for any number of schemes, so many at a time.

    In a searcher: ``trials = yield from in_batches(schemes, batch)``.
    """
    trials: list[Trial] = []
    for at in range(0, len(schemes), batch):
        part = list(schemes[at : at + batch])
        trials += yield part if fidelity == FULL else Batch(part, fidelity)
    return trials


def usable(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that teach something."""
    return [trial for trial in trials if math.isfinite(trial.reward)]


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The first of the best, so that an equal newcomer is no success."""
    return max(trials, key=lambda trial: trial.reward, default=None)
