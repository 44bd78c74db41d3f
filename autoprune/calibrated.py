"""Divergence from the dense network once a candidate's confidence is set right.

A repaired network is often too sure of itself, or too unsure. One temperature mends that and changes no decision
(temperature scaling: Guo, Pleiss, Sun and Weinberger, ICML 2017); what is left at the best temperature is about the
decisions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

POWERS = torch.linspace(-1.5, 1.0, 11).exp2()
"""Inverse temperatures at which a divergence is looked at."""
AS_IT_IS = POWERS.tolist().index(1.0)
"""The place of the one that changes nothing."""


def divergences(log_p: Tensor, dense: Tensor) -> Tensor:
    """KL(dense || candidate), summed over answers, with the candidate's probabilities raised to every power.

    ``log_p`` and ``dense`` are log-probabilities (images, classes, ...).
    """
    tempered = (log_p if power == 1 else functional.log_softmax(power * log_p, 1) for power in POWERS.tolist())
    return torch.stack([functional.kl_div(p, dense, reduction="sum", log_target=True) for p in tempered]).cpu().double()


def least(values: Tensor) -> float:
    """The least divergence over all powers, from those at ``POWERS``: the lowest point of a parabola through three."""
    place = int(values.argmin().clamp(1, len(values) - 2))
    before, here, after = (float(value) for value in values[place - 1 : place + 2])
    bend, slope = before - 2 * here + after, (after - before) / 2
    if not bend > 0:
        return min(before, here, after)
    step = max(-1.0, min(1.0, -slope / bend))
    return max(0.0, here + slope * step + bend * step**2 / 2)
