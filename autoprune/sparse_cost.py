"""Costs of single weights, from the space alone: what remains where zeros need neither work nor room.

With k weights kept of a tensor of n entries, b bytes each, in r rows (its first axis):

- ``weights``: the sum of k over the space's tensors, which is what a sparsity speaks of;
- ``params``: the same plus all other parameters of the network, which stay as they are;
- ``macs``: the multiply-adds that are left for one sample, k times the positions where the tensor is applied; layers
  outside the space count whole;
- ``bitmask``: bytes of the space's tensors as values and a bit per entry, k b + ceil(n / 8);
- ``csr``: bytes of the space's tensors as compressed sparse rows, k b + 4 k + 4 (r + 1): values, column indices of 32
  bits, and where each row begins.

Whoever stores a tensor would not take a form that makes it larger, so neither does a cost: a tensor needs n b bytes at
most, and a share of these costs is a share of the dense tensors. Zeros save time only where hardware and kernels know
of them; masked networks of PyTorch run as long as dense ones, so there is neither latency nor activation memory here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from autoprune.scheme import Scheme
from autoprune.space import Group, SearchSpace

Row = NDArray[np.float64]

INDEX = 4  # bytes of a column index, and of a row's beginning


@dataclass(frozen=True, eq=False)
class Sum:
    """A cost that adds up over the groups: rest + sum over groups of slope x kept, each at most ``most``."""

    rest: Row
    slope: Row
    most: Row
    outside: float = 0.0

    def __call__(self, scheme: Scheme) -> float:
        """The cost of a scheme."""
        return self.at(np.asarray(scheme.kept, dtype=np.float64))

    def at(self, kept: Row) -> float:
        """The cost at counts that need not be whole."""
        return self.outside + float(np.minimum(self.rest + self.slope * kept, self.most).sum())


def weights(space: SearchSpace) -> Sum:
    """Weights that the space's tensors keep."""
    return _linear(np.ones(len(space)))


def params(space: SearchSpace) -> Sum:
    """Parameters that are not removed: the kept weights, and everything outside the space."""
    return _linear(np.ones(len(space)), sum(map(prod, space.shapes.values())) - float(space.widths.sum()))


def macs(space: SearchSpace) -> Sum:
    """Multiply-adds of weights that are kept, for one sample."""
    ours = {group.tensor: at for at, group in enumerate(space.groups)}
    slope, outside = np.zeros(len(space)), 0.0
    for layer in space.layers:
        if layer.weight in ours:
            slope[ours[layer.weight]] += layer.positions
        else:
            outside += layer.positions * prod(space.shapes[layer.weight])
    return _linear(slope, outside)


def bitmask(space: SearchSpace) -> Sum:
    """Bytes of the space's tensors, each as values and a bit per entry, or dense where that is less."""
    return _stored(space, lambda group: -(-group.width // 8), index=0)


def csr(space: SearchSpace) -> Sum:
    """Bytes of the space's tensors, each in compressed sparse rows, or dense where that is less."""
    return _stored(space, lambda group: INDEX * (space.shapes[group.tensors[0]][0] + 1), index=INDEX)


def _linear(slope: Row, outside: float = 0.0) -> Sum:
    return Sum(np.zeros(len(slope)), slope, np.full(len(slope), np.inf), outside)


def _stored(space: SearchSpace, overhead: Callable[[Group], int], index: int) -> Sum:
    """Bytes of a form with so many bytes beside the values of a tensor, and so many more per value."""
    sizes = np.array([group.itemsize for group in space.groups], dtype=np.float64)
    rest = np.array([overhead(group) for group in space.groups], dtype=np.float64)
    return Sum(rest, sizes + index, sizes * space.widths)


COSTS: Mapping[str, Callable[[SearchSpace], Sum]] = {
    "macs": macs,
    "params": params,
    "weights": weights,
    "bitmask": bitmask,
    "csr": csr,
}
