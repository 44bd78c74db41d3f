"""Dynamic sparse training: the lowest weights are masked anew as training goes, and masked ones may come back.

The parameters stay dense. Every step runs the network on the masked weights, applies their gradient to the dense ones
straight through the mask, and pulls the masked ones toward zero (UniPTS, Xie et al., CVPR 2024; the decay is that of
SR-STE, Zhou et al., ICLR 2021). A masked weight that the gradient wants grows until it is among the highest again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autoprune import masks
from autoprune.finetune import Method, Recipe
from autoprune.recipes.objective import Objective, observed

PULL = 5e-5
SUFFIX = "_mask"  # as torch.nn.utils.prune calls its buffers

Answers = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""``(inputs, their numbers) -> what the teacher makes of them``."""


def highest(model: nn.Module, counts: Mapping[str, int]) -> dict[str, Tensor]:
    """The masks of the largest absolute weights, so many of each name."""
    return {name: masks.highest(model.get_parameter(name).detach().abs(), count) for name, count in counts.items()}


@contextmanager
def wearing(model: nn.Module, counts: Mapping[str, int]) -> Iterator[None]:
    """The masks as buffers of the network, beside their weights, so that checkpoints and averages hold them too."""
    for name, mask in highest(model, counts).items():
        path, _, weight = name.rpartition(".")
        model.get_submodule(path).register_buffer(weight + SUFFIX, mask)
    try:
        yield
    finally:
        for name in counts:
            path, _, weight = name.rpartition(".")
            delattr(model.get_submodule(path), weight + SUFFIX)


def worn(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """The masks that a network wears."""
    return {name: model.get_buffer(name + SUFFIX) for name in names}


@contextmanager
def masked(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """The network as it is used: its masked weights are zero inside the block, and what they were after it."""
    dense = {name: model.get_parameter(name).detach().clone() for name in names}
    masks.impose(model, worn(model, names))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in dense.items():
                model.get_parameter(name).copy_(weight)


@torch.no_grad()
def through(model: nn.Module, names: Sequence[str], pull: float) -> None:
    """The gradient of the dense weights: g + ``pull`` (1 - mask) w, with g that of the masked network."""
    for name, mask in worn(model, names).items():
        weight = model.get_parameter(name)
        if weight.grad is not None:  # else the layer took no part
            weight.grad.add_(torch.where(mask, 0.0, weight), alpha=pull)


class Dynamic:
    """One training's step, which masks anew every ``period`` steps (never: 0).

    Steps are numbered through, ``per_epoch`` of them in an epoch, so that a training that goes on at an epoch updates
    its masks when it would have.
    """

    def __init__(
        self,
        counts: Mapping[str, int],
        objective: Objective,
        answers: Answers,
        *,
        layers: Sequence[str] = (),
        period: int = 1,
        per_epoch: int = 1,
        pull: float = PULL,
    ) -> None:
        self.counts = counts
        self.names = list(counts)
        self._objective = objective
        self._answers = answers
        self._layers = layers
        self._period = period
        self._per_epoch = per_epoch
        self._pull = pull
        self._epoch = -1
        self._at = 0

    def step(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, numbers: Tensor, epoch: int
    ) -> float:
        """Descend the objective once, and mask anew when it is time."""
        self._at = self._at + 1 if epoch == self._epoch else 0
        self._epoch = epoch
        wanted = self._answers(inputs, numbers)
        optimizer.zero_grad()
        with masked(model, self.names):
            loss = self._objective(observed(model, inputs, self._layers), wanted, epoch)
            torch.autograd.backward(loss)
        through(model, self.names, self._pull)
        optimizer.step()
        if self._period and (epoch * self._per_epoch + self._at + 1) % self._period == 0:
            for name, mask in highest(model, self.counts).items():
                model.get_buffer(name + SUFFIX).copy_(mask)
        return float(loss.detach())

    def method(self, facts: Mapping[str, Any]) -> Method:
        """What :func:`autoprune.finetune.finetune` takes."""
        return Method(self.step, momentum, used=lambda model: masked(model, self.names), keep="last", facts=facts)


def momentum(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with plain momentum; weight decay holds for every parameter."""
    return torch.optim.SGD(model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
