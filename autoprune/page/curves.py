"""The best so far of several searches, in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autoprune import chart
from autoprune.page import histories
from autoprune.page.histories import Past
from autoprune.page.numbers import number
from autoprune.page.parts import Figure, Table

POINTS = 200
ALONG = {"trials": "trials", "seconds": "seconds of measuring"}


def figure(past: Mapping[str, Sequence[Sequence[Past]]], against: str) -> Figure:
    """The best so far along "trials" or "seconds": per name the median of its searches, in a band around all."""
    found = lines(past, against)
    several = any(len(each) > 1 for each in past.values())
    note = "the median over the seeds, in a band from the worst to the best" if several else "who has ended stays level"
    svg = chart.curves(found, f"Best reward so far, by {ALONG[against]}", ALONG[against], note)
    return Figure(against, svg, _milestones(found, against))


def lines(
    past: Mapping[str, Sequence[Sequence[Past]]], against: str
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Per name: points along "trials" or "seconds", and the best reward up to there, (searches, points).

    Every search begins with the uniform scheme at 0. Where one had stopped, its last value goes on.
    """
    last = max(getattr(trial, against) for several in past.values() for history in several for trial in history) or 1.0
    grid = np.arange(0.0, last + 1) if against == "trials" and last <= POINTS else np.linspace(0.0, last, POINTS)
    return {
        name: (grid, np.stack([histories.best_so_far(history, against, grid) for history in several]))
        for name, several in past.items()
    }


def _milestones(found: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]], against: str) -> Table:
    """The medians at quarters of the way."""
    grid = next(grid for grid, _ in found.values())
    places = sorted({round(share * (len(grid) - 1)) for share in (0.0, 0.25, 0.5, 0.75, 1.0)})
    unit = "trials" if against == "trials" else "s"
    medians = [
        (name, *(number(float(np.median(several[:, place]))) for place in places))
        for name, (_, several) in found.items()
    ]
    return Table(("", *(f"after {grid[place]:.3g} {unit}" for place in places)), medians)
