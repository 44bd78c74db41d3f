"""The trials of a search as its ``history.csv`` tells them."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoprune.errors import UserError
from autoprune.run import HISTORY, Run

SPARED = ("share=", "recovery=")  # in the fidelity of a quick look
STOPPED = "race="  # in that of a candidate that lost a race


@dataclass(frozen=True)
class Past:
    """One trial: what had been spent with it, its numbers (None where it failed), and what it kept."""

    trials: float
    seconds: float
    fidelity: str
    reward: float | None
    loss: float | None
    accuracy: float | None
    affordable: bool
    kept: tuple[int, ...]

    @property
    def full(self) -> bool:
        """Whether it was measured on all images and with the run's own repair."""
        return not (self.stopped or any(word in self.fidelity for word in SPARED))

    @property
    def stopped(self) -> bool:
        """Whether it was stopped because it could not win any more; its loss is then what was to be expected."""
        return STOPPED in self.fidelity

    @property
    def counts(self) -> bool:
        """Whether it could be the answer."""
        return self.affordable and self.full and self.reward is not None


def read(run: Run) -> list[Past]:
    """The trials in their order; the first is the uniform scheme."""
    path = run.folder / HISTORY
    if not path.is_file():
        raise UserError(f"run {run.name} has no {HISTORY}: its folder is not whole")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [_past(row) for row in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): it is not a run's file, or it was damaged") from error


def best_so_far(history: Sequence[Past], against: str, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """The highest reward of a trial that counts up to each point of the grid; -inf before the first.

    ``against`` is "trials" or "seconds".
    """
    rewards = [trial.reward if trial.counts and trial.reward is not None else -math.inf for trial in history]
    best = np.maximum.accumulate(np.array(rewards))
    spent = np.array([getattr(trial, against) for trial in history], dtype=np.float64)
    at = np.searchsorted(spent, grid + 1e-9, side="right") - 1
    return np.where(at < 0, -np.inf, best[at])


def _past(row: dict[str, str]) -> Past:
    spent = (float(row["trials"]), float(row["seconds"]), row["fidelity"])
    numbers = (_finite(row["reward"]), _finite(row["loss"]), _finite(row["accuracy"]))
    return Past(*spent, *numbers, row["affordable"] == "True", tuple(int(count) for count in row["kept"].split()))


def _finite(text: str) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None
