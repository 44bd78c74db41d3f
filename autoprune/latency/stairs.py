"""The staircase of the hardware: at which widths a layer's time jumps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

STEPS = (32, 16, 8, 4, 2)
"""How many neighbouring lengths one stair may span."""
CLEARER = 0.5
"""Stairs must leave at most this share of what a straight line leaves unexplained."""


def find(lengths: Sequence[int], ms: Sequence[float]) -> int:
    """The step of the staircase that times at neighbouring ascending lengths stand on; the lengths' own step if none.

    Stairs end at multiples of their step and may be of any height. They are believed where they explain the times
    clearly better than a straight line does, after both have paid for their parameters (adjusted residuals).
    """
    times, spacing = np.asarray(ms, dtype=np.float64), lengths[1] - lengths[0]
    line = _unexplained(times, np.vander(np.asarray(lengths, dtype=np.float64), 2))
    best, left = spacing, CLEARER * line
    for many in STEPS:
        step = many * spacing
        stairs = -(-np.asarray(lengths) // step)
        counts = np.unique(stairs, return_counts=True)[1]
        if len(counts) < 2 or counts.max() < 2:
            continue
        found = _unexplained(times, (stairs[:, None] == np.unique(stairs)).astype(np.float64))
        if found < left:
            best, left = step, found
    return best


def _unexplained(times: NDArray[np.float64], design: NDArray[np.float64]) -> float:
    """Residual variance of a least-squares fit, per degree of freedom that is left."""
    solution = np.linalg.lstsq(design, times, rcond=None)[0]
    free = len(times) - design.shape[1]
    return float(((times - design @ solution) ** 2).sum() / free) if free > 0 else float("inf")
