"""The staircase of the hardware: at which widths a layer's time jumps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

STEPS = (32, 16, 8, 4, 2)
"""How many neighbouring lengths one stair may span."""
CLEARER = 0.5
"""Flat stairs must leave at most this share of what a straight line leaves unexplained."""
EXACT = 1e-3
"""No timing is believed to be more exact than this, relative to the mean."""


def find(lengths: Sequence[int], ms: Sequence[float]) -> int:
    """The step of the staircase that times at neighbouring ascending lengths stand on; the lengths' own step if none.

    Stairs end at multiples of their step, may be of any height, and may rise a little on their own. They are believed
    where flat ones explain the times clearly better than a straight line does, after both have paid for their
    parameters (adjusted residuals). A staircase of 8 is also one of 4: among those that are believed the Bayesian
    information criterion (Schwarz 1978) decides.
    """
    at, times = np.asarray(lengths, dtype=np.float64), np.asarray(ms, dtype=np.float64)
    spacing = lengths[1] - lengths[0]
    if len(at) < 3:
        return spacing
    line = np.vander(at, 2)
    believed = CLEARER * _residual(times, line) / (len(at) - 2)
    least = len(at) * (EXACT * times.mean()) ** 2
    best, least_criterion = spacing, _criterion(times, line, least)
    for many in STEPS:
        stairs = -(-np.asarray(lengths) // (many * spacing))
        flat = (stairs[:, None] == np.unique(stairs)).astype(np.float64)
        if flat.shape[1] < 2 or flat.sum(0).max() < 2:
            continue
        criterion = _criterion(times, np.column_stack([flat, at]), least)
        if _residual(times, flat) / (len(at) - flat.shape[1]) < believed and criterion < least_criterion:
            best, least_criterion = many * spacing, criterion
    return best


def _residual(times: NDArray[np.float64], design: NDArray[np.float64]) -> float:
    """What a least-squares fit leaves, squared and summed."""
    solution = np.linalg.lstsq(design, times, rcond=None)[0]
    return float(((times - design @ solution) ** 2).sum())


def _criterion(times: NDArray[np.float64], design: NDArray[np.float64], least: float) -> float:
    number, parameters = design.shape
    return float(number * np.log(max(_residual(times, design), least) / number) + parameters * np.log(number))
