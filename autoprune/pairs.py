"""Pairs: two layers with a rectifier between them, solved in turn for what the second gives.

A first layer that is solved alone gives what its channels gave in the dense network, though the others are gone. Here
it may give anything that serves the second. With the second layer held, and every hidden value on its side of the
rectifier's bounds, what comes out is linear in the first's weights: least squares, with too many unknowns to factor
the system, so it is solved by conjugate gradients (Hestenes and Stiefel 1952), damped. Then the second layer is solved
again for what is hidden now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoprune.fused import Fused, Linear
from autoprune.rectifiers import Clip
from autoprune.ridge import Moments, Rows, System, collected, scarcity

DAMPING = 1.0  # as if each output row asked so much for the first layer to stay, in units of what it reads
ITERATIONS = 2
FLOOR = 1e-3  # of the mean variance of what the first layer reads; of the largest channel's weight in the second
STEPS = (1.0, 0.5, 0.25)  # tried one after the other, for values do cross bounds


@dataclass(frozen=True, eq=False)
class Part:
    """One chunk of images, at the places where the second layer is looked at.

    ``x`` (first's groups, images x spots, d) is what the first layer multiplies to make hidden values, at every spot
    that the second reads, ``reads`` (places, taps) says which of the spots is read through a tap, -1 where it is
    padding, and ``target`` (second's groups, images x places, o) is what the second should give.
    """

    x: Tensor
    spots: int
    reads: Tensor
    target: Tensor

    def read(self, hidden: Tensor) -> Tensor:
        """The second's rows, of hidden values (images x spots, channels)."""
        values = hidden.unflatten(0, (-1, self.spots)).index_select(1, self.reads.clamp(min=0).flatten())
        values = values.unflatten(1, self.reads.shape) * self._inside()
        groups, rows, _ = self.target.shape
        made: Tensor = values.transpose(2, 3).reshape(rows, groups, -1).transpose(0, 1)
        return made

    def written(self, rows: Tensor) -> Tensor:
        """The adjoint of :meth:`read`."""
        places, taps = self.reads.shape
        values = rows.transpose(0, 1).reshape(-1, places, rows.shape[0] * rows.shape[2] // taps, taps)
        values = (values.transpose(2, 3) * self._inside()).flatten(1, 2)
        hidden = values.new_zeros(len(values), self.spots, values.shape[2])
        return hidden.index_add_(1, self.reads.clamp(min=0).flatten(), values).flatten(0, 1)

    def _inside(self) -> Tensor:
        return (self.reads >= 0).to(self.x)[:, :, None]


class Pair:
    """Two layers, by what the first reads and what the second should give.

    ``clip`` is the rectifier between them, ``behind`` the one that alone reads the second, if there is one, and
    ``read`` are moments of what the first layer reads.
    """

    def __init__(
        self, parts: Sequence[Part], read: Moments, clip: Clip, behind: Clip | None, both: tuple[Fused, Fused]
    ) -> None:
        self.parts = parts
        self.clip = clip
        self.behind = behind
        self.both = both
        self.rows = sum(part.target.shape[1] for part in parts)
        square = read.square / read.count
        square.diagonal(dim1=1, dim2=2).add_(FLOOR * square.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) + 1e-12)
        self._root = torch.linalg.cholesky(square).to(parts[0].x.dtype)
        self._mean = read.mean.to(parts[0].x.dtype)

    def solve(self, first: Linear, second: Linear, ridge: float, sweeps: int) -> tuple[Linear, Linear]:
        """Both layers after ``sweeps`` turns, as long as the error falls; ``ridge`` is that of the second's system."""
        first, second = (_cast(layer, self._mean.dtype) for layer in (first, second))
        hidden = self.hidden(first)
        for _ in range(sweeps):
            moved = self._moved(first, hidden, second)
            if moved is None:
                break
            first, hidden = moved
            second = self._again(hidden, second, ridge)
        return _cast(first, torch.double), _cast(second, torch.double)

    def _moved(self, first: Linear, hidden: Sequence[Tensor], second: Linear) -> tuple[Linear, list[Tensor]] | None:
        """The first layer after a change as long as it helps, if one does, and what it gives then."""
        change, reached = self.change(hidden, second), self.error(hidden, second)
        for size in STEPS:
            moved = Linear(first.weight + size * change.weight, first.constant + size * change.constant)
            given = self.hidden(moved)
            if self.error(given, second) < reached:
                return moved, given
        return None

    def hidden(self, first: Linear) -> list[Tensor]:
        """What the first layer gives, before the rectifier, part by part (images x spots, channels)."""
        return [_together(part.x @ first.weight + first.constant) for part in self.parts]

    def error(self, hidden: Sequence[Tensor], second: Linear) -> float:
        """The squared error that is left."""
        return sum(float(gap.square().sum()) for gap in self._gaps(hidden, second))

    def change(self, hidden: Sequence[Tensor], second: Linear) -> Linear:
        """The change of the first layer that would leave the least error if no value crossed a bound, damped.

        Unknowns are scaled: what the first layer reads is decorrelated, and each channel weighs what the second layer
        makes of it.
        """
        slopes = [self.clip.slope(values) for values in hidden]
        groups, channels = len(self._mean), hidden[0].shape[1]
        weight = second.weight.reshape(len(second.weight), channels // len(second.weight), -1)
        scale = weight.flatten(0, 1).norm(dim=1)
        scale = scale.clamp(min=FLOOR * float(scale.max()) or 1.0).reshape(groups, 1, -1)

        def unscaled(z: Tensor) -> Linear:
            change = torch.linalg.solve_triangular(self._root.mT, z[:, :-1] / scale, upper=True)
            constant = z[:, -1:] / scale if self.both[0].centred else 0 * z[:, -1:]
            return Linear(change, constant - self._mean @ change)

        def forward(z: Tensor) -> list[Tensor]:
            moves = self.hidden(unscaled(z))
            return [
                part.read(move * slope) @ second.weight
                for part, move, slope in zip(self.parts, moves, slopes, strict=True)
            ]

        def adjoint(gaps: Sequence[Tensor]) -> Tensor:
            weight, constant = torch.zeros_like(self._mean.mT), torch.zeros_like(self._mean[..., :1])
            for part, gap, slope in zip(self.parts, gaps, slopes, strict=True):
                felt = (part.written(gap @ second.weight.mT) * slope).unflatten(1, (groups, -1)).transpose(0, 1)
                constant = constant + felt.sum(1, keepdim=True)
                weight = weight + (felt.mT @ part.x).mT  # faster than x' felt, for it is narrow
            weight = torch.linalg.solve_triangular(self._root, weight - self._mean.mT @ constant, upper=False)
            scaled: Tensor = torch.cat([weight, constant * self.both[0].centred], 1) / scale
            return scaled

        damping = DAMPING * self.rows * scarcity(self.rows, self._mean.shape[2])
        return unscaled(_least_squares(forward, adjoint, self._gaps(hidden, second), damping))

    def _gaps(self, hidden: Sequence[Tensor], second: Linear) -> list[Tensor]:
        """What the second layer's answers lack, part by part."""
        return [rows.target - answers for rows, answers in self._answered(hidden, second)]

    def _again(self, hidden: Sequence[Tensor], second: Linear, ridge: float) -> Linear:
        """The second layer, for what is hidden now and what its answers should be."""
        rows = (rows for rows, _ in self._answered(hidden, second))
        moments = collected(rows, centred=self.both[1].centred)
        solved = System(moments.square, second.weight.double(), ridge).solution(moments)
        return _cast(Linear(solved, moments.constant(solved)), second.weight.dtype)

    def _answered(self, hidden: Sequence[Tensor], second: Linear) -> Iterator[tuple[Rows, Tensor]]:
        """The second layer's rows with what they should give, and what they do, part by part."""
        for part, values in zip(self.parts, hidden, strict=True):
            x = part.read(self.clip(values))
            answers = x @ second.weight + second.constant
            yield Rows(x, part.target if self.behind is None else self.behind.aim(answers, part.target)), answers


def _cast(layer: Linear, dtype: torch.dtype) -> Linear:
    return Linear(layer.weight.to(dtype), layer.constant.to(dtype))


def _together(values: Tensor) -> Tensor:
    """(convolution groups, n, channels / groups) as (n, channels)."""
    return values.transpose(0, 1).flatten(1)


def _least_squares(
    forward: Callable[[Tensor], list[Tensor]],
    adjoint: Callable[[Sequence[Tensor]], Tensor],
    wanted: Sequence[Tensor],
    damping: float,
) -> Tensor:
    """The z of least |forward(z) - wanted|^2 + damping |z|^2, after a few conjugate gradients."""
    left = list(wanted)
    direction = descent = adjoint(left)
    z = torch.zeros_like(descent)
    steepness = float(descent.square().sum())
    enough = torch.finfo(descent.dtype).eps * steepness  # beyond it rounding errors grow
    for _ in range(ITERATIONS):
        if not steepness > enough:
            break
        moved = forward(direction)
        curvature = sum(float(part.square().sum()) for part in moved) + damping * float(direction.square().sum())
        size = steepness / curvature
        z = z + size * direction
        left = [gap - size * part for gap, part in zip(left, moved, strict=True)]
        descent = adjoint(left) - damping * z
        before, steepness = steepness, float(descent.square().sum())
        direction = descent + steepness / before * direction
    return z
