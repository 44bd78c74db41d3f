"""No criterion at all: the reference that every criterion has to beat."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune.errors import UserError
from autoprune.space import Group
from autoprune.statistics import Statistics


def random(group: Group, model: nn.Module, statistics: Statistics, *, seed: int = 0) -> Tensor:
    """Uniform numbers in [0, 1), drawn from ``seed`` and the group's name: the same in every session."""
    return torch.from_numpy(draw(group.name, group.units, seed))


def draw(name: str, number: int, seed: int) -> NDArray[np.float64]:
    """So many uniform numbers in [0, 1), from the seed and a group's name."""
    if seed < 0:
        raise UserError(f"criterion random: seed = {seed}: a whole number >= 0")
    return np.random.default_rng([seed, zlib.crc32(name.encode())]).random(number)
