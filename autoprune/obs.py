"""Block Optimal Brain Surgeon: which units cost least when all other weights are re-fitted.

With H the inverse of the Gram matrix of what a layer reads and W its weights, removing the columns u and
repairing the others by least squares raises the squared error of the output by tr(W_uT (H_uu)^-1 W_u)
(Hassibi and Stork 1993, for blocks). The repaired weights and the new inverse are
W - H_:u (H_uu)^-1 W_u and H - H_:u (H_uu)^-1 H_u:, so removals can follow each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads the units, or one convolution group of it.

    ``inverse`` (n, n) is the part of the inverse Gram matrix that belongs to the units' columns, ``weight``
    (n, outputs) what multiplies these columns; n = units x columns per unit, unit by unit. Other columns of
    the layer stay, so their part of the inverse is not needed. ``energy`` is the mean square of the output.
    """

    inverse: Tensor
    weight: Tensor
    energy: float


class _Elimination:
    """One reader while units are removed.

    H itself is never updated: the removals are kept as the rows B of a Cholesky factor, H = inverse - BT B,
    and only the blocks H_uu, which the errors need, follow every step.
    """

    def __init__(self, reader: Reader, units: int) -> None:
        size = len(reader.inverse) // units
        self.inverse = reader.inverse.reshape(units, size, -1)
        self.factor = torch.zeros_like(reader.inverse)
        self.known = 0  # rows of the factor that are filled
        self.blocks = torch.stack([self.inverse[u, :, u * size : (u + 1) * size] for u in range(units)])
        self.weight = reader.weight.reshape(units, size, -1).clone()

    def errors(self) -> Tensor:
        """What removing each unit costs now; nothing where it is gone already."""
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self.blocks))
        return (inverse * (self.weight @ self.weight.mT)).sum((1, 2))

    def remove(self, unit: int) -> None:
        units, size, _ = self.weight.shape
        known = self.factor[: self.known]
        own = slice(unit * size, (unit + 1) * size)
        root = torch.linalg.cholesky(self.blocks[unit])
        new = torch.linalg.solve_triangular(root, self.inverse[unit] - known[:, own].T @ known, upper=False)
        self.factor[self.known : self.known + size] = new
        self.known += size
        columns = new.T.reshape(units, size, size)
        self.weight -= columns @ torch.linalg.solve_triangular(root, self.weight[unit], upper=False)
        self.blocks -= columns @ columns.mT
        self.weight[unit] = 0
        self.blocks[unit] = torch.eye(size, dtype=self.blocks.dtype)


def eliminate(readers: Sequence[Reader], units: int) -> Tensor:
    """Remove unit after unit, always the cheapest; what its removal adds to the error is a unit's score.

    Errors of all readers add up and are given as a share of their energy. Scores are the running maximum,
    so ranking by it repeats the order of removal.
    """
    energy = max(sum(reader.energy for reader in readers), 1e-30)
    states = [_Elimination(reader, units) for reader in readers]
    gone = torch.zeros(units, dtype=torch.bool)
    scores = torch.zeros(units, dtype=torch.float64)
    worst = 0.0
    for _ in range(units):
        errors = torch.stack([state.errors() for state in states]).sum(0)
        errors[gone] = math.inf
        unit = int(errors.argmin())
        worst = max(worst * (1 + 1e-12), float(errors[unit]))
        scores[unit] = worst / energy
        gone[unit] = True
        for state in states:
            state.remove(unit)
    return scores
