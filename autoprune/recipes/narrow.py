"""Run a network narrow: the first channels of every group, through views of its own weights.

A narrow pass copies no weight. Its gradients arrive in the first channels of the whole network's parameters, and are
exactly zero in all others, so that passes at several widths add up where they overlap (Yu et al., ICLR 2019).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from autoprune.errors import UserError
from autoprune.forward import Example
from autoprune.scheme import Scheme
from autoprune.slicing import named_tensors, prune, selections
from autoprune.space import SearchSpace

SHELLS = 64
"""Networks without weights that are kept, one per scheme; making one takes milliseconds."""


def first(space: SearchSpace, scheme: Scheme) -> list[NDArray[np.int64]]:
    """The units of a train-once network's candidate: in every group the first ones."""
    space.check(scheme)
    return [np.arange(count // group.unit) for group, count in zip(space.groups, scheme.kept, strict=True)]


def uniform(space: SearchSpace, width: float) -> Scheme:
    """The scheme in which every group has the legal count nearest to this share of its width."""
    if not 0 < width <= 1:
        raise UserError(f"width {width}: a share of the whole width, above 0 and at most 1")
    for group in space.groups:
        if round(width * group.width) < group.counts[0]:
            raise UserError(
                f"width {width} leaves {width * group.width:.1f} channels of {group.name}, which keeps "
                f"{group.counts[0]} at least: choose wider ones"
            )
    return Scheme(tuple(group.nearest(width * group.width) for group in space.groups), space.granularity)


class Narrow:
    """One network at any widths.

    ``narrow(inputs, scheme)`` answers as the scheme's network of first channels would, in the model's own mode.
    ``tensors`` replace some of the narrow network's own, by name and at their narrow sizes: batch norms of that width,
    or weights that were generated. Running statistics of other passes than the whole network's are not kept.
    """

    def __init__(self, model: nn.Module, space: SearchSpace) -> None:
        self.model = model
        self.space = space
        self._bare = copy.deepcopy(model).to("meta")
        self._shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
        self._shells: dict[Scheme, nn.Module] = {}

    def __call__(self, inputs: Example, scheme: Scheme, tensors: Mapping[str, Tensor] | None = None) -> Any:
        """The answer of the scheme's network."""
        shell = self.shell(scheme)
        shell.train(self.model.training)
        given = {**self.views(scheme), **(tensors or {})}
        args, named = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, None)
        return functional_call(shell, given, args, named)

    def views(self, scheme: Scheme) -> dict[str, Tensor]:
        """The narrow network's tensors: views of the parameters, copies of the running statistics."""
        stays = selections(self.space, first(self.space, scheme), self._shapes)
        whole = scheme == self.space.dense
        found = {}
        for name, tensor in named_tensors(self.model):
            view = cropped(tensor, stays.get(name, {}))
            found[name] = view if whole or isinstance(tensor, nn.Parameter) else view.clone()
        return found

    def shell(self, scheme: Scheme) -> nn.Module:
        """A network of the scheme's sizes that has no weights."""
        if scheme not in self._shells:
            if len(self._shells) == SHELLS:
                del self._shells[next(iter(self._shells))]
            self._shells[scheme] = prune(self._bare, self.space, first(self.space, scheme))
        return self._shells[scheme]


def cropped(tensor: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    """What stays of a tensor; a view where that lies together."""
    for axis, stays in axes.items():
        low, high = int(stays[0]), int(stays[-1])
        if high - low + 1 == len(stays):
            tensor = tensor.narrow(axis, low, len(stays))
        else:
            tensor = tensor.index_select(axis, stays.to(tensor.device))
    return tensor


def draw(space: SearchSpace, low: float, layerwise: bool) -> Scheme:
    """A random scheme between the width ``low`` and the whole, by torch's global stream: one width, or one a group."""
    widths = low + (1 - low) * torch.rand(len(space) if layerwise else 1)
    rates = widths.expand(len(space)).tolist()
    counts = [g.nearest(rate * g.width) for g, rate in zip(space.groups, rates, strict=True)]
    return Scheme(tuple(counts), space.granularity)
