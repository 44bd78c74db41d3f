"""Channels by label: what one forward pass teaches about which channels are the same.

Each entry of each axis of each parameter gets a label of its own. While the network runs once, every
operator says which labels must be the same channel: a sum ties its terms position by position, a
convolution ties the input axis of its weight to what arrives, batch norm ties its scale to its input.
What an operator cannot keep apart (layer norm over the axis, attention over its heads) is frozen with
the reason. Labels that end up in one connected component are one removable unit.

This needs no gradient, no list of layer types and no knowledge of the model's code; unknown operators
freeze what they touch, so an unknown network loses prunable layers, never correctness. Where an operator
would allow two readings (does a reshape count on the number of blocks or on their size?) the likelier
one is taken, because what follows is proved in any case (:mod:`autoprune.search_spaces.proof`).

Three modules share the work: the record kept during the pass is here, what each operator does to labels
is in :mod:`autoprune.search_spaces.rules`, and :mod:`autoprune.search_spaces.follow` runs the pass.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune.space import Role

Labels = NDArray[np.int64]
Axes = list[Labels | None]  # per axis of a tensor; None where the axis is not made of anybody's channels

FIXED_WIDTH = "it meets a tensor of fixed width"


@dataclass
class ParameterAxis:
    """One axis of one parameter or buffer, and the role it was seen to play."""

    path: str
    axis: int
    labels: Labels
    role: Role = "through"
    order: int = -1  # when the forward pass first used the tensor


@dataclass
class Use:
    """How a weight was applied: the facts a cost needs."""

    kind: Literal["conv", "linear"]
    macs: float  # multiply-adds, whole batch
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    input_size: tuple[int, int] = (1, 1)


class Book:
    """The record of one forward pass.

    ``axes`` lists the axes of every parameter and buffer, ``edges`` the ties between labels (pairs of
    arrays, position by position), ``frozen`` the labels that cannot leave with the reason, ``uses`` how
    often every weight was multiplied.
    """

    def __init__(self, model: nn.Module) -> None:
        self.count = 0
        self.axes: dict[str, list[ParameterAxis]] = {}
        self.edges: list[tuple[Labels, Labels]] = []
        self.frozen: list[tuple[Labels, str]] = []
        self.uses: dict[str, Use] = {}
        self._known: dict[int, tuple[Tensor, Axes]] = {}  # the tensor is kept alive, so that ids stay unique
        self._paths: dict[int, str] = {}
        self._clock = 0
        for path, tensor in (*model.named_parameters(), *model.named_buffers()):
            axes = [ParameterAxis(path, axis, self.new(size)) for axis, size in enumerate(tensor.shape)]
            self.axes[path] = axes
            self.set_axes(tensor, [axis.labels for axis in axes])
            self._paths[id(tensor)] = path
        self._owners = [axis for axes in self.axes.values() for axis in axes if len(axis.labels)]
        self._starts = [int(axis.labels[0]) for axis in self._owners]

    # -- labels -------------------------------------------------------------------------------

    def new(self, size: int) -> Labels:
        """Fresh labels."""
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def tie(self, a: Labels | None, b: Labels | None, reason: str = FIXED_WIDTH) -> None:
        """Declare two axes the same, position by position; an untracked partner fixes the other."""
        if a is None or b is None or len(a) != len(b):
            self.freeze(a, reason)
            self.freeze(b, reason)
        elif a is not b:
            self.edges.append((a, b))

    def tie_rows(self, table: Labels) -> Labels:
        """Declare the rows of a table the same; returns the first, which stands for all."""
        for row in table[1:]:
            self.tie(table[0], row)
        return np.ascontiguousarray(table[0])

    def freeze(self, labels: Labels | None, reason: str) -> None:
        """Declare that these entries can never be removed."""
        if labels is not None and len(labels):
            self.frozen.append((labels, reason))

    # -- tensors ------------------------------------------------------------------------------

    def axes_of(self, tensor: Tensor) -> Axes:
        """What is known of each axis of a tensor."""
        known = self._known.get(id(tensor))
        return list(known[1]) if known is not None else [None] * tensor.dim()

    def set_axes(self, tensor: Tensor, axes: Sequence[Labels | None]) -> None:
        """Learn the axes of a tensor; labels that cannot be its axis are frozen rather than lost."""
        kept: Axes = []
        for labels, size in zip(axes, tensor.shape, strict=True):
            fits = labels is not None and len(labels) == size
            if not fits:
                self.freeze(labels, "its number changes on the way")
            kept.append(labels if fits else None)
        self._known[id(tensor)] = (tensor, kept)

    def freeze_all(self, tensor: Tensor, reason: str) -> None:
        """Freeze every tracked axis of a tensor."""
        for labels in self.axes_of(tensor):
            self.freeze(labels, reason)

    # -- weights ------------------------------------------------------------------------------

    def weight(self, tensor: Tensor) -> str | None:
        """The parameter that a tensor is, is part of or was computed from without any data."""
        return self._paths.get(id(tensor))

    def derive(self, tensors: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        """What is computed from parameters alone counts as the largest of them."""
        paths = [(source.numel(), path) for source in sources if (path := self.weight(source)) is not None]
        if not sources or len(paths) < len(sources):
            return
        for tensor in tensors:
            self._known.setdefault(id(tensor), (tensor, [None] * tensor.dim()))
            self._paths[id(tensor)] = max(paths)[1]

    def touch(self, tensors: Sequence[Tensor]) -> None:
        """Note the moment when parameters are first used: the forward order."""
        self._clock += 1
        for tensor in tensors:
            for axis in self.axes.get(self._paths.get(id(tensor), ""), ()):
                if axis.order < 0:
                    axis.order = self._clock

    def set_role(self, labels: Labels | None, role: Role) -> None:
        """Record what the parameter axis that these labels belong to does.

        A weight that reads and makes the same channels (tied embeddings) counts as their reader.
        """
        if labels is None or not len(labels):
            return
        at = bisect_right(self._starts, int(labels[0])) - 1
        owner = self._owners[at] if at >= 0 else None
        if owner is not None and labels[0] <= owner.labels[-1] and owner.role != "in":
            owner.role = role

    def use(self, weight: Tensor, use: Use) -> None:
        """Count one application of a weight; the facts of its first use describe the layer."""
        path = self.weight(weight)
        if path is not None:
            known = self.uses.setdefault(path, use)
            if known is not use:
                known.macs += use.macs

    def order(self, path: str) -> int:
        """When a tensor was first used; -1 if it never was."""
        return self.axes[path][0].order if self.axes[path] else -1
