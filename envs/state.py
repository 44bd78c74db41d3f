"""What an agent sees of the group it decides on: AMC's state, for any search space.

A group is described by the layer that produces its channels, and by the summed cost of all the layers that take
part in it. All numbers lie in [0, 1]. Those that do not change within an episode are scaled linearly from the
smallest to the largest value among the groups; one that is the same for all groups is 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from autoprune.budget import Budget
from autoprune.scheme import Scheme
from autoprune.space import Group, Layer, SearchSpace

Table = NDArray[np.float64]

PAPER = ("index", "out", "in", "height", "width", "stride", "kernel", "cost")
RELEASE = ("index", "type", "in", "out", "release's stride", "kernel", "weights")
STATES: Mapping[str, tuple[str, ...]] = {"paper": PAPER, "release": RELEASE}
"""The static elements; both continue with reduced, rest and the last action."""


class State:
    """The observations of one space.

    ``paper``, 11 elements (He et al., ECCV 2018): t, n, c, h, w, stride, k, cost, reduced, rest, last.

    - index t: position of the group;
    - out n, in c: channels of the layer that produces the group, before pruning;
    - height h, width w: size of what that layer reads; 1 for a linear layer;
    - stride, kernel k of that layer; 1 for a linear layer;
    - cost: dense multiply-adds of all layers that the group takes part in, together;
    - reduced: fraction of the dense cost (the budget's first cap) that the groups decided so far have removed;
    - rest: fraction of the dense multiply-adds in layers that no group up to this one takes part in;
    - last: kept fraction of the group before as it was executed; 1 at the first group.

    The paper's c and n belong to a layer whose *input* is pruned, ours to the one whose output is: the same
    channels, seen from the other side.

    ``release``, 10 elements, as the published code: no height and width, but the type (0 convolution, 1 linear) and
    the number of weights in place of the cost; stride is 0 for a linear layer; "reduced" takes the undecided groups
    at their smallest, which makes it the hope rather than the past. The release leaves an element that all layers
    share unscaled, and counts parameters in the first "rest" of an episode; ours does neither.
    """

    def __init__(self, space: SearchSpace, budget: Budget, kind: str) -> None:
        self.space = space
        self.names = (*STATES[kind], "reduced", "rest", "last")
        self._hopeful = kind == "release"
        self._cost = budget.costs[next(iter(budget.caps))]
        self._dense = self._cost(space.dense)
        work = _work(space)
        self._rest = _rest(space, work)
        described = [_described(t, group, space, work) for t, group in enumerate(space.groups)]
        self._static = _scaled(np.array([[row[name] for name in STATES[kind]] for row in described], dtype=np.float64))

    def __call__(self, prefix: tuple[int, ...]) -> NDArray[np.float32]:
        """The state before the group after ``prefix``; after the last one, that of the last with all decided."""
        space, t = self.space, min(len(prefix), len(self.space) - 1)
        rest = space.smallest if self._hopeful else space.dense
        cost = self._cost(Scheme((*prefix, *rest.kept[len(prefix) :]), space.granularity))
        last = prefix[-1] / space.groups[len(prefix) - 1].width if prefix else 1.0
        reduced = min(max(1 - cost / self._dense, 0.0), 1.0)
        return np.array([*self._static[t], reduced, self._rest[t], last], dtype=np.float32)


def _work(space: SearchSpace) -> dict[str, float]:
    """Dense multiply-adds per weight, of all layers that use it."""
    work: dict[str, float] = {}
    for layer in space.layers:
        work[layer.weight] = work.get(layer.weight, 0.0) + math.prod(space.shapes[layer.weight]) * layer.positions
    return work


def _rest(space: SearchSpace, work: Mapping[str, float]) -> Table:
    """Per group, the share of the work in layers that neither it nor a group before it takes part in."""
    total, rest = sum(work.values()), dict(work)
    shares = []
    for group in space.groups:
        for path in group.tensors:
            rest.pop(path, None)
        shares.append(sum(rest.values()) / total if total else 0.0)
    return np.array(shares)


def _scaled(table: Table) -> Table:
    """Every column from 0 to 1; a constant one becomes 0."""
    low, high = table.min(axis=0), table.max(axis=0)
    scaled: Table = (table - low) / np.where(high > low, high - low, 1.0)
    return scaled


def _described(t: int, group: Group, space: SearchSpace, work: Mapping[str, float]) -> dict[str, float]:
    """Every static element of one group, before scaling."""
    layers = {layer.weight: layer for layer in space.layers}
    outputs = group.width
    makers = [piece for piece in group.slices if piece.role == "out" and piece.path in layers]
    if makers:
        layer = layers[makers[0].path]
        shape = space.shapes[layer.weight]
        inputs = shape[0] if makers[0].axis else shape[1] * layer.groups  # a transposed weight has its inputs first
    elif group.tensor in layers:  # single weights of a layer
        layer = layers[group.tensor]
        shape = space.shapes[layer.weight]
        outputs, inputs = shape[0], shape[1] * layer.groups
    else:  # something else than a layer writes these channels, such as an embedding
        layer, shape, inputs = Layer(group.name, "linear", "", 1), (group.width,), 1
    linear = layer.kind == "linear"
    return {
        "index": t,
        "type": linear,
        "out": outputs,
        "in": inputs,
        "height": layer.input_size[0],
        "width": layer.input_size[1],
        "stride": layer.stride,
        "release's stride": 0 if linear else layer.stride,
        "kernel": layer.kernel,
        "weights": math.prod(shape),
        "cost": sum(work.get(path, 0.0) for path in group.tensors),
    }
