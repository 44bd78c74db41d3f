"""What is known before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoprune.scheme import Scheme


@dataclass(frozen=True, eq=False)
class Hints:
    """Free knowledge that a searcher may use.

    ``scores`` holds one array of unit scores per group (high = keep), comparable between groups;
    ``starts`` are schemes that somebody believes in. ``tuning`` says that candidates are tuned before they are
    measured, so that ``Fidelity.after`` has a meaning.
    """

    scores: tuple[NDArray[np.float64], ...] = ()
    starts: tuple[Scheme, ...] = ()
    tuning: bool = False
