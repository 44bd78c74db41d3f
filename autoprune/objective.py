"""What is wanted of a trial: a number, and which direction is better."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from autoprune.trial import Measurement, Trial

Direction = Literal["maximize", "minimize"]
"""In the words of Optuna."""
REWARD = "reward"
"""The objective that is the trial's own reward."""


@dataclass(frozen=True)
class Objective:
    """A number of a trial, and which direction is better.

    ``name`` is "reward" or one of :func:`numbers`, unless ``function`` makes the number from the measurement.
    ``reference`` is the value that hypervolumes count from; None stands for the worst one that was seen.
    """

    name: str
    direction: Direction
    reference: float | None = None
    function: Callable[[Measurement], float] | None = None

    def __call__(self, trial: Trial) -> float:
        """The number as it was measured, whatever the direction; NaN where the trial failed or does not have it."""
        if trial.failed:
            return math.nan
        if self.name == REWARD:
            return trial.reward
        if self.function is not None:
            return self.function(trial.measurement)
        return numbers(trial.measurement).get(self.name, math.nan)

    def __str__(self) -> str:
        return f"{self.direction} {self.name}"


def numbers(m: Measurement) -> dict[str, float]:
    """What was measured: accuracy, loss and KL, metrics of one's own, costs as fractions of the dense network's."""
    known = {
        "accuracy": m.accuracy,
        "loss": m.loss,
        "kl": m.kl,
        "calibrated_kl": m.calibrated_kl,
        **m.metrics,
        **m.fractions,
    }
    return {name: value for name, value in known.items() if not math.isnan(value)}
