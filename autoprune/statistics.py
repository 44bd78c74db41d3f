"""What the dense network says about itself on the calibration set, collected once and on demand."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from autoprune import feature_maps, gram, slopes
from autoprune.feature_maps import Activation, FeatureRank
from autoprune.gram import Gram
from autoprune.patches import WeightLayer, has_rows
from autoprune.slopes import Effects, Target, class_labels
from autoprune.space import SearchSpace

__all__ = ["Batches", "Statistics", "StatisticsNotice", "class_labels"]

Batches = Sequence[tuple[Any, Any]]

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
        self._ranks: dict[int, Mapping[str, FeatureRank]] = {}
        self._effects: dict[Target, tuple[Effects | None, ...]] = {}
        self._weight_effects: dict[Target, Mapping[str, Tensor]] = {}

    @cached_property
    def consumers(self) -> Mapping[str, WeightLayer]:
        """Convolution and linear layers that read a group's channels, or lose weights themselves, by weight path.

        Layers that share a parameter with another layer are not among them.
        """
        owners = Counter(id(p) for module in self.model.modules() for p in module._parameters.values() if p is not None)
        found: dict[str, WeightLayer] = {}
        for path in self._read:
            layer = self.model.get_submodule(path.rpartition(".")[0])
            if has_rows(layer) and all(owners[id(p)] <= 1 for p in layer._parameters.values()):
                found[path] = layer
        return found

    @property
    def _read(self) -> list[str]:
        """Weights that multiply a group's channels, or that lose entries themselves."""
        groups = self.space.groups
        pieces = [p.path for group in groups for p in group.slices if p.role == "in" and p.tensor == "weight"]
        return pieces + [group.tensor for group in groups if group.tensor is not None]

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
    def producers(self) -> Mapping[str, nn.Module]:
        """Convolution and linear layers that make a group's channels or carry them along, by weight path."""
        pieces = (piece for group in self.space.groups for piece in group.slices)
        made = [piece for piece in pieces if piece.role != "in" and piece.tensor == "weight"]
        layers = {piece.path: self.model.get_submodule(piece.module) for piece in made}
        return {path: layer for path, layer in layers.items() if isinstance(layer, nn.Linear | _ConvNd)}

    @cached_property
    def activations(self) -> Mapping[str, Activation]:
        """Zeros, magnitude and deviation of the producers' feature maps, by weight path, in one pass.

        Missing are layers that never run, and all but one of those that share a map.
        """
        return feature_maps.pool(self.model, self.producers, self.batches)

    def ranks(self, images: int) -> Mapping[str, FeatureRank]:
        """Average ranks of the producers' feature maps over the first ``images`` images, by weight path."""
        if images not in self._ranks:
            self._ranks[images] = feature_maps.ranks(self.model, self.producers, self.batches, images)
        return self._ranks[images]

    def effects(self, target: Target = "labels") -> tuple[Effects | None, ...]:
        """Per group, the first-order effects of scaling its channels on the loss of each image, in one pass.

        The loss is cross-entropy with the labels (``target="labels"``) or with the network's own answers
        (``"answers"``). None for a group none of whose consumers is a convolution or linear layer that runs as a
        module.
        """
        if target not in self._effects:
            self._effects[target] = slopes.effects(self.model, self.space, self.consumers, self.batches, target)
        return self._effects[target]

    def weight_effects(self, target: Target = "labels") -> Mapping[str, Tensor]:
        """The mean over batches of |w g| for every entry of the groups' tensors, in their shapes, by weight path.

        g is the gradient of the batch's mean loss: cross-entropy with the labels or with the network's own answers.
        """
        if target not in self._weight_effects:
            paths = [group.tensor for group in self.space.groups if group.tensor is not None]
            self._weight_effects[target] = slopes.of_weights(self.model, paths, self.batches, target)
        return self._weight_effects[target]


def _notice(message: str) -> None:
    warnings.warn(message, StatisticsNotice, stacklevel=3)
