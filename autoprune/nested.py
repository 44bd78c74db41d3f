"""Least squares for removals that follow one order: factored once per layer, then one product per candidate.

An evaluator ranks the channels of a group once, so that the candidates of a search remove ever longer ends of one list.
With the columns of a layer in the order in which they stay, let G + r I = M M' be the Cholesky factorisation and N the
inverse of M. If the columns S stay and the rest R goes, then

    (G_SS + r I)^-1 G_SR W_R = -N_RS' (M' W)_R,

because leading blocks of M and N belong to leading blocks of G. What is left to do for a candidate is a product of the
removed rows with the kept columns, where solving the system takes the cube of the latter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoprune.gram import Gram
from autoprune.space import SearchSpace

LEAF = 256  # columns of a triangular matrix that is inverted in one go


class Nested:
    """One layer with what its repairs have in common; ``order`` are its input channels, the first stays longest.

    The layer has one convolution group. The factors are held in the weight's precision, single at least.
    """

    def __init__(self, weight: Tensor, gram: Gram, order: NDArray[np.int64], ridge: float) -> None:
        self.order = order
        self.taps = weight[0, 0].numel()
        self.columns = torch.from_numpy((order[:, None] * self.taps + np.arange(self.taps)).ravel())
        square = gram.second[0][self.columns][:, self.columns]
        square.diagonal().add_(damping(square, ridge))
        factor = torch.linalg.cholesky(square)
        precision = torch.promote_types(weight.dtype, torch.float32)
        self._weight = weight.flatten(1).to(precision)
        self._mean = gram.mean[0].to(self._weight)
        self._carried = (factor.T @ weight.flatten(1).cpu().double()[:, self.columns].T).to(self._weight)
        self._inverse = inverted(factor).to(self._weight)

    def to(self, device: torch.device) -> Self:
        """Move to where candidates are repaired, in place."""
        if self._weight.device != device:
            self._weight, self._mean = self._weight.to(device), self._mean.to(device)
            self._carried, self._inverse = self._carried.to(device), self._inverse.to(device)
        return self

    def knows(self, kept: NDArray[np.int64]) -> bool:
        """Whether these channels, ascending, are the first of the order."""
        return bool(np.array_equal(np.sort(self.order[: len(kept)]), kept))

    def repaired(self, kept: int, outputs: Tensor | slice) -> tuple[Tensor, Tensor]:
        """New weights (outputs, kept x taps) of the first channels in their natural order, and what is lost on average.

        See :func:`autoprune.recover.least_squares`; the loss has one entry per output channel.
        """
        stays, goes = self.columns[: kept * self.taps], self.columns[kept * self.taps :]
        weight = self._weight[outputs]
        removed = slice(len(stays), None)
        taken = -(self._carried[removed][:, outputs].T @ self._inverse[removed, : len(stays)])
        lost = weight[:, goes] @ self._mean[goes] - taken @ self._mean[stays]
        natural, places = stays.sort()
        return weight[:, natural] + taken[:, places], lost


def damping(square: Tensor, ridge: float) -> float:
    """What is added to the diagonal of a Gram matrix: ``ridge`` times its mean, whatever the candidate keeps of it."""
    return ridge * float(square.diagonal().mean()) + 1e-12


def orders(
    space: SearchSpace, ranked: Sequence[NDArray[np.int64]], shapes: Mapping[str, Sequence[int]]
) -> dict[str, NDArray[np.int64]]:
    """The input channels of every layer that reads one group, by weight path, those that stay longest first.

    ``ranked`` are the units of every group in the order in which they stay; channels of no group stay always.
    ``shapes`` are those of the weights that are asked about.
    """
    readers: dict[str, list[NDArray[np.int64]]] = {}
    for group, units in zip(space.groups, ranked, strict=True):
        for piece in group.slices:
            if piece.axis == 1 and piece.path in shapes:
                readers.setdefault(piece.path, []).append(piece.positions[units].ravel())
    return {
        path: np.concatenate([np.setdiff1d(np.arange(shapes[path][1]), leaving[0]), leaving[0]])
        for path, leaving in readers.items()
        if len(leaving) == 1
    }


def inverted(lower: Tensor) -> Tensor:
    """The inverse of a lower triangular matrix, by halves, so that most of it is matrix products."""
    size = len(lower)
    if size <= LEAF:
        whole: Tensor = torch.linalg.solve_triangular(lower, torch.eye(size, dtype=lower.dtype), upper=False)
        return whole
    half = size // 2
    result = torch.zeros_like(lower)
    result[:half, :half] = first = inverted(lower[:half, :half])
    result[half:, half:] = last = inverted(lower[half:, half:])
    result[half:, :half] = -last @ (lower[half:, :half] @ first)
    return result
