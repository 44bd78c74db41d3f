"""Ridge regression of one layer: moments of the rows that it reads and of what it should give, and their solution."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

ENOUGH = 4  # rows per column; with fewer a ridge grows in proportion


def scarcity(rows: int, columns: int) -> float:
    """How much a ridge grows where there are few rows; 1 where there are enough."""
    return max(1.0, ENOUGH * columns / rows)


class Rows(NamedTuple):
    """Rows (convolution groups, n, d) that a layer multiplies, and what it should give, (convolution groups, n, o)."""

    x: Tensor
    target: Tensor


def precise(rows: Rows) -> Rows:
    """In single precision at least."""
    return Rows(*(part.to(torch.promote_types(part.dtype, torch.float32)) for part in rows))


class Moments:
    """Moments of rows and targets that arrive in chunks, in double precision (Chan, Golub and LeVeque 1979).

    ``square`` (convolution groups, d, d) and ``cross`` (convolution groups, d, o) are sums over ``count`` rows, about
    the means if ``centred``; otherwise the means are zero.
    """

    def __init__(self, rows: Rows, *, centred: bool) -> None:
        self.centred = centred
        self.count, self.mean, self.target, self.square, self.cross = self._of(rows)

    def add(self, rows: Rows) -> None:
        """Another chunk."""
        count, mean, target, square, cross = self._of(rows)
        total = self.count + count
        step, rise = mean - self.mean, target - self.target
        weight = self.count * count / total
        self.square.add_(square).baddbmm_(step.mT, step, alpha=weight)
        self.cross.add_(cross).baddbmm_(step.mT, rise, alpha=weight)
        self.mean = self.mean + step * (count / total)
        self.target = self.target + rise * (count / total)
        self.count = total

    def aim(self, rows: Iterable[Rows]) -> None:
        """The same rows with other targets."""
        cross, level = torch.zeros_like(self.cross), torch.zeros_like(self.target)
        for x, target in map(precise, rows):
            target = target - self.target.to(target.dtype)
            cross += _crossed(x - self.mean.to(x.dtype), target)
            level += target.double().sum(1, keepdim=True)
        self.cross = cross
        if self.centred:
            self.target = self.target + level / self.count

    def constant(self, solved: Tensor) -> Tensor:
        """What is added to the rows' product with a solution: (convolution groups, 1, o)."""
        return self.target - self.mean @ solved

    def _of(self, rows: Rows) -> tuple[int, Tensor, Tensor, Tensor, Tensor]:
        x, target = precise(rows)
        mean, level = (x.mean(1, keepdim=True), target.mean(1, keepdim=True))
        if not self.centred:
            mean, level = torch.zeros_like(mean), torch.zeros_like(level)
        x, target = x - mean, target - level
        return x.shape[1], mean.double(), level.double(), (x.mT @ x).double(), _crossed(x, target)


def _crossed(x: Tensor, target: Tensor) -> Tensor:
    """X'T, in this order because targets are narrow."""
    return (target.mT @ x).mT.double()


def collected(chunks: Iterator[Rows], *, centred: bool) -> Moments:
    """The moments of all chunks, of which there is one at least."""
    moments = Moments(next(chunks), centred=centred)
    for rows in chunks:
        moments.add(rows)
    return moments


class System:
    """(X'X + r I)(W - ``weight``) = X'(T - X ``weight``), r = ``ridge`` x mean diagonal of X'X, factored once."""

    def __init__(self, square: Tensor, weight: Tensor, ridge: float) -> None:
        self.weight = weight
        self.square = square.clone()
        amount = ridge * square.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) + 1e-12
        self.square.diagonal(dim1=1, dim2=2).add_(amount)
        self._root = torch.linalg.cholesky(self.square)
        self._known = square @ weight

    def solution(self, moments: Moments) -> Tensor:
        """The weights (convolution groups, d, o) for these moments."""
        return self.weight + torch.cholesky_solve(moments.cross - self._known, self._root)
