"""Keep the first channels: for networks that were trained to be read off so, see :mod:`autoprune.recipes`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoprune.space import Group
from autoprune.statistics import Statistics


def first(group: Group, model: nn.Module, statistics: Statistics) -> Tensor:
    """Falling from unit to unit, whatever they do."""
    return torch.arange(group.units, 0, -1, dtype=torch.double)
