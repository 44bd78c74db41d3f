"""How a candidate is repaired without training it."""

from __future__ import annotations

import torch
from torch import nn

from autoprune.recover import Context, least_squares, recalibrate_bn


def part_way(candidate: nn.Module, context: Context, step: float = 0.8) -> None:
    """Go only so far from the cut weights toward those of least squares, then re-estimate batch norms."""
    before = [parameter.detach().clone() for parameter in candidate.parameters()]
    least_squares(candidate, context)
    with torch.no_grad():
        for parameter, cut in zip(candidate.parameters(), before, strict=True):
            parameter.lerp_(cut, 1 - step)
    recalibrate_bn(candidate, context)
