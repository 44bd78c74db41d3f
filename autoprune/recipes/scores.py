"""One learnable score per weight, and in its ranking a subnetwork of every size (PrunNet, CVPR 2025, section 3).

A subnetwork of *capacity* c is the share c of every layer's weights whose scores are the largest in absolute value. All
capacities cut the same ranking, so that a smaller subnetwork is part of every larger one, also at capacities that were
never trained.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoprune import masks
from autoprune.errors import UserError
from autoprune.forward import Example, call
from autoprune.space import Group
from autoprune.statistics import Statistics


class Scored(nn.Module):
    """A network and a score for every single one of the weights ``names``; called, it is the dense network.

    Scores start Kaiming-uniform (a = √5), whatever the weights are.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], seed: int = 0) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(names)
        stream = torch.Generator().manual_seed(seed)
        self.scores = nn.ParameterList(_drawn(network.get_parameter(name), stream) for name in names)

    def forward(self, inputs: Example) -> Any:
        """The dense network's answer."""
        return call(self.network, inputs)

    def weights(self) -> list[nn.Parameter]:
        """The weights that have scores, in the order of ``names``."""
        return [self.network.get_parameter(name) for name in self.names]

    def nested(self, capacities: Sequence[float]) -> list[dict[str, Tensor]]:
        """The masks of several capacities, from one sort per tensor.

        They are those of :func:`autoprune.masks.highest`: of equal scores the last in memory stays.
        """
        for capacity in capacities:
            check(capacity)
        found: list[dict[str, Tensor]] = [{} for _ in capacities]
        for name, score in zip(self.names, self.scores, strict=True):
            rank = _ranked(score.detach().abs())
            for own, capacity in zip(found, capacities, strict=True):
                own[name] = rank >= rank.numel() - masks.kept(rank.numel(), 1 - capacity)
        return found

    def masks(self, capacity: float) -> dict[str, Tensor]:
        """What stays at a capacity."""
        return self.nested([capacity])[0]

    def criterion(self, group: Group, model: nn.Module, statistics: Statistics) -> Tensor:
        """The absolute scores of a group of single weights, as :mod:`autoprune.criteria` has it."""
        if group.tensor not in self.names:
            raise UserError(f"group {group.name} has no scores, it was trained dense: leave it out of the search space")
        score: Tensor = self.scores[self.names.index(group.tensor)]
        return score.detach().abs()

    def subnetwork(self, capacity: float) -> nn.Module:
        """The network of a capacity with weights of its own, in evaluation mode.

        Its running statistics are still the dense network's: give it those of its own by
        :func:`autoprune.recover.reestimate` before it is used.
        """
        found = copy.deepcopy(self.network)
        masks.impose(found, self.masks(capacity))
        return found.eval()


def check(capacity: float) -> None:
    """Refuse what is no share of the weights."""
    if not 0 < capacity <= 1:
        raise UserError(f"capacity {capacity}: the share of weights to keep is above 0 and at most 1")


def _drawn(weight: Tensor, stream: torch.Generator) -> nn.Parameter:
    score = nn.init.kaiming_uniform_(torch.empty(weight.shape), a=math.sqrt(5), generator=stream)
    return nn.Parameter(score.to(weight))


def _ranked(score: Tensor) -> Tensor:
    """How many entries go before each, from 0 for the lowest."""
    order = score.flatten().argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return rank.reshape(score.shape)
