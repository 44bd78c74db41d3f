"""What the dense network says about itself on the calibration set, collected once and on demand."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from autoprune import gram
from autoprune.forward import call, evaluating, logits, to
from autoprune.gram import Gram
from autoprune.patches import WeightLayer, has_rows
from autoprune.space import Group, SearchSpace

Batches = Sequence[tuple[Any, Any]]
Matrix = NDArray[np.float64]

POSITIONS = 16  # sampled output positions per image and layer
GRAM_LIMIT = 256 * 2**20  # bytes per layer


class StatisticsNotice(UserWarning):
    """Something could not be collected, so a cheaper rule takes its place."""


class Statistics:
    """Lazily collected facts about ``model``; ``batches`` are calibration pairs (input, label).

    Everything is measured in evaluation mode and leaves the model as it is. The first axis of an input
    counts images.
    """

    def __init__(
        self,
        model: nn.Module,
        space: SearchSpace,
        batches: Batches,
        *,
        positions: int = POSITIONS,
        gram_limit: int = GRAM_LIMIT,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.space = space
        self.batches = batches
        self.positions = positions
        self.gram_limit = gram_limit
        self.seed = seed

    @cached_property
    def consumers(self) -> Mapping[str, WeightLayer]:
        """Convolution and linear layers that read a group's channels, by weight path.

        Layers that share a parameter with another layer are not among them.
        """
        owners = Counter(id(p) for module in self.model.modules() for p in module._parameters.values() if p is not None)
        found: dict[str, WeightLayer] = {}
        for piece in (piece for group in self.space.groups for piece in group.slices):
            if piece.role == "in" and piece.tensor == "weight":
                layer = self.model.get_submodule(piece.module)
                if has_rows(layer) and all(owners[id(p)] <= 1 for p in layer._parameters.values()):
                    found[piece.path] = layer
        return found

    @cached_property
    def grams(self) -> Mapping[str, Gram]:
        """Gram matrices by weight path; a notice names the consumers that are left out, and why."""
        bytes_needed = {
            path: 8 * layer.weight[0].numel() ** 2 * int(getattr(layer, "groups", 1))
            for path, layer in self.consumers.items()
        }
        fitting = {path: layer for path, layer in self.consumers.items() if bytes_needed[path] <= self.gram_limit}
        for path in self.consumers.keys() - fitting.keys():
            _notice(
                f"{path}: a Gram matrix of {bytes_needed[path] / 2**20:.0f} MiB is above the limit of "
                f"{self.gram_limit / 2**20:.0f} MiB; the layer keeps its weights and does not rank its inputs"
            )
        found = gram.collect(self.model, fitting, self.batches, self.positions, self.seed)
        for path in fitting.keys() - found.keys():
            _notice(f"{path}: the output is not weight times input; the layer keeps its weights")
        return found

    @cached_property
    def taylor(self) -> tuple[Matrix | None, ...]:
        """Per group and unit: mean over images of |sum over positions of a * dC/da| (Molchanov et al. 2017).

        The activation a is what the group's consumers read; the loss C is cross-entropy with the labels,
        or with the network's own answers where a batch has no class labels. None for a group none of whose
        consumers is a convolution or linear layer that runs as a module.
        """
        totals: list[Matrix | None] = [None] * len(self.space)
        images = 0
        for inputs, labels in self.batches:
            slopes, count = self._slopes(inputs, labels)
            images += count
            for at, group in enumerate(self.space.groups):
                effect = self._first_order(group, slopes)
                if effect is not None:
                    totals[at] = effect + (0.0 if (before := totals[at]) is None else before)
        return tuple(None if total is None else total / images for total in totals)

    def _slopes(self, inputs: Any, labels: Any) -> tuple[dict[str, Matrix], int]:
        """Per consumer: sum over positions of a * dC/da, (images, channels), C summed over the batch's images.

        It is the derivative by a gate, a factor of one on each channel of each image. Also the number of images.
        """
        gates: dict[str, Tensor] = {}

        def gate(path: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            if not inputs:
                return None
            x = inputs[0]
            channels = x.dim() - 1 if isinstance(layer, nn.Linear) else 1
            shape = [size if axis in (0, channels) else 1 for axis, size in enumerate(x.shape)]
            if path not in gates:  # a layer that is called twice has one gate
                gates[path] = torch.ones(shape[0], shape[channels], dtype=x.dtype, device=x.device, requires_grad=True)
            return (x * gates[path].reshape(shape), *inputs[1:])

        device = next(self.model.parameters()).device
        with ExitStack() as hooks, torch.enable_grad(), evaluating(self.model):
            for path, layer in self.consumers.items():
                hooks.enter_context(layer.register_forward_pre_hook(partial(gate, path)))
            answer = logits(call(self.model, to(inputs, device)))
            target = class_labels(labels)
            target = answer.detach().argmax(1) if target is None else target.to(device)
            loss = functional.cross_entropy(answer, target, reduction="sum")
            found = torch.autograd.grad(loss, list(gates.values()), allow_unused=True) if gates else ()
        slopes = {}
        for path, slope in zip(gates, found, strict=True):
            if slope is not None:
                # where the first axis counts more than images (windows, say), an image's entries follow each other
                images = len(answer) if len(slope) % len(answer) == 0 else 1
                slopes[path] = slope.reshape(images, -1, slope.shape[1]).sum(1).cpu().double().numpy()
        return slopes, len(answer)

    def _first_order(self, group: Group, slopes: Mapping[str, Matrix]) -> Matrix | None:
        """Sum over images of the absolute first-order effect of each unit, all consumers together."""
        effects = []
        for piece in group.slices:
            if piece.role == "in" and piece.path in slopes:
                slope = slopes[piece.path]
                parts = int(getattr(self.consumers[piece.path], "groups", 1))
                starts = np.arange(parts) * (slope.shape[1] // parts)
                channels = (starts[:, None, None] + piece.positions).swapaxes(0, 1).reshape(group.units, -1)
                effects.append(slope[:, channels].sum(2))
        if not effects:
            return None
        total: Matrix = np.abs(sum(effects)).sum(0)
        return total


def class_labels(labels: Any) -> Tensor | None:
    """The batch's class numbers; None where it has none."""
    if isinstance(labels, Tensor) and labels.dim() == 1 and not labels.is_floating_point():
        return labels.long()
    return None


def _notice(message: str) -> None:
    warnings.warn(message, StatisticsNotice, stacklevel=3)
