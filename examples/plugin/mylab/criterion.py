"""Which channels stay when a count is given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoprune.space import Group
from autoprune.statistics import Statistics


def deviation(group: Group, model: nn.Module, statistics: Statistics) -> Tensor:
    """A channel is worth the standard deviation of the weights that make it; shape (units,), high = keep."""
    scores = torch.zeros(group.units)
    for piece in group.slices:
        if piece.role == "out":
            weight = model.get_parameter(piece.path).detach().cpu().movedim(piece.axis, 0)
            rows = weight[torch.from_numpy(piece.positions)].reshape(group.units, -1)
            scores += rows.std(dim=1, correction=0)
    return scores
