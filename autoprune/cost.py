"""Costs of a scheme, from the space alone: multiply-adds and parameters of networks that lost channels.

What single weights cost, :mod:`autoprune.sparse_cost` says; :func:`costs` gives those of a space of either kind.

Convention: one multiply-add of a convolution or linear layer is 1 MAC, counted per sample. Bias, batch
norm, activation, pooling and the products inside attention are free. Parameters are everything in
``model.parameters()``, shared tensors once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoprune import sparse_cost
from autoprune.errors import UserError
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

Cost = Callable[[Scheme], float]

LABELS: Mapping[str, str] = {
    "macs": "MACs",
    "params": "parameters",
    "latency": "predicted latency (ms)",
    "memory": "peak activation bytes",
    "weights": "prunable weights",
    "bitmask": "bytes with bitmask",
    "csr": "bytes as CSR",
}
"""How costs are called where people read them."""


def amount(value: float) -> str:
    """A count with three or four digits and a suffix: 62.9M."""
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.4g}{suffix}"
    return f"{value:.4g}"


class TensorSizes:
    """Entries of every tensor as a function of the kept counts.

    A tensor shrinks along at most two axes; the length of a cut axis is affine in the counts:
    length = rest + sum over groups of covered_g * kept_g / width_g.
    """

    def __init__(self, space: SearchSpace, tensors: tuple[str, ...]) -> None:
        rows: dict[tuple[str, int], int] = {}
        slope: list[NDArray[np.float64]] = [np.zeros(len(space))]  # row 0: an axis of length one
        rest: list[float] = [1.0]
        wanted = set(tensors)
        for g, group in enumerate(space.groups):
            for piece in group.slices:
                if piece.path not in wanted:
                    continue
                row = rows.setdefault((piece.path, piece.axis), len(rest))
                if row == len(rest):
                    slope.append(np.zeros(len(space)))
                    rest.append(float(space.shapes[piece.path][piece.axis]))
                covered = len(np.unique(piece.positions))
                slope[row][g] += covered / group.width
                rest[row] -= covered
        self._slope = np.array(slope)
        self._rest = np.array(rest)
        self._constant = np.ones(len(tensors))
        self._rows = np.zeros((2, len(tensors)), dtype=np.int64)
        for t, path in enumerate(tensors):
            cut = [axis for axis in range(len(space.shapes[path])) if (path, axis) in rows]
            if len(cut) > 2:
                raise ValueError(f"{path} is cut along {len(cut)} axes; at most two are supported")
            for slot, axis in enumerate(cut):
                self._rows[slot, t] = rows[path, axis]
            uncut = [n for axis, n in enumerate(space.shapes[path]) if axis not in cut]
            self._constant[t] = np.prod(uncut, dtype=np.float64)

    def __call__(self, scheme: Scheme) -> NDArray[np.float64]:
        """Entries per tensor, in the order the tensors were named."""
        entries: NDArray[np.float64] = np.rint(self.at(np.asarray(scheme.kept, dtype=np.float64)))
        return entries

    def at(self, kept: NDArray[np.float64]) -> NDArray[np.float64]:
        """Entries per tensor at counts that need not be whole."""
        lengths = self._rest + self._slope @ kept
        entries: NDArray[np.float64] = self._constant * lengths[self._rows[0]] * lengths[self._rows[1]]
        return entries


@dataclass(frozen=True, eq=False)
class WeightedSizes:
    """The entries of some tensors, each counted ``weights`` times."""

    sizes: TensorSizes
    weights: NDArray[np.float64]

    def __call__(self, scheme: Scheme) -> float:
        """The cost of a scheme."""
        return float(self.sizes(scheme) @ self.weights)

    def at(self, kept: NDArray[np.float64]) -> float:
        """The cost at counts that need not be whole."""
        return float(self.sizes.at(kept) @ self.weights)


def macs(space: SearchSpace) -> Cost:
    """Multiply-adds of convolution and linear layers for one sample."""
    sizes = TensorSizes(space, tuple(layer.weight for layer in space.layers))
    return WeightedSizes(sizes, np.array([layer.positions for layer in space.layers], np.float64))


def params(space: SearchSpace) -> Cost:
    """Entries of all parameters."""
    return WeightedSizes(TensorSizes(space, tuple(space.shapes)), np.ones(len(space.shapes)))


COSTS: Mapping[str, Callable[[SearchSpace], Cost]] = {"macs": macs, "params": params}


def costs(space: SearchSpace, names: tuple[str, ...] | None = None) -> dict[str, Cost]:
    """The named cost functions, bound to a space; all that its granularity knows by default."""
    known: Mapping[str, Callable[[SearchSpace], Cost]] = COSTS
    if space.granularity != "channel":
        known = sparse_cost.COSTS
    for name in names or ():
        if name not in known:
            raise UserError(f"cost {name!r} is unknown: use one of {', '.join(known)}")
    return {name: known[name](space) for name in (known if names is None else names)}


def account(
    scheme: Scheme, space: SearchSpace, functions: Mapping[str, Cost]
) -> tuple[dict[str, float], dict[str, float]]:
    """What a scheme costs, and which fraction that is of the dense network's cost."""
    absolute = {name: cost(scheme) for name, cost in functions.items()}
    return absolute, {name: absolute[name] / cost(space.dense) for name, cost in functions.items()}


def layer_shares(space: SearchSpace) -> dict[str, float]:
    """Share of the dense MACs per layer."""
    entries = TensorSizes(space, tuple(layer.weight for layer in space.layers))(space.dense)
    work = entries * np.array([layer.positions for layer in space.layers])
    return {layer.name: float(w / work.sum()) for layer, w in zip(space.layers, work, strict=True)}
