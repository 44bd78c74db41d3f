"""Where Frank-Wolfe keeps a tensor: convex hulls of sparse points, each with its linear minimisation.

A region's corners have k entries that are not zero. A step toward a corner shrinks all other entries, and that is what
makes a network sparse that never leaves its regions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from autoprune.errors import UserError

Rescale = Literal["gradient", "diameter", "fast_gradient"]


class Region(Protocol):
    """A convex set around zero, symmetric in the sign of every entry."""

    @property
    def k(self) -> int:
        """Entries of a corner that are not zero."""

    @property
    def radius(self) -> float:
        """The scale of the set."""

    @property
    def diameter(self) -> float:
        """The largest distance between two of its points."""

    def corner(self, slope: Tensor) -> Tensor:
        """The linear minimisation oracle: the corner v for which the inner product of ``slope`` and v is least."""

    def gauge(self, point: Tensor) -> float:
        """The factor by which the region must grow to just hold a point: at most 1 inside."""


@dataclass(frozen=True)
class Polytope:
    """The K-sparse polytope: sums of magnitudes up to k ``radius``, none above ``radius`` (Miao et al. 2022).

    Its corners have k entries of magnitude ``radius``.
    """

    k: int
    radius: float

    def __post_init__(self) -> None:
        _check(self.k, self.radius)

    @property
    def diameter(self) -> float:
        """From a corner to the one opposite."""
        return 2 * self.radius * math.sqrt(self.k)

    def corner(self, slope: Tensor) -> Tensor:
        """Against the signs of the k steepest entries; an entry without slope counts as positive."""
        flat = slope.flatten()
        chosen = flat.abs().topk(self.k).indices
        corner = torch.zeros_like(flat)
        corner[chosen] = torch.where(flat[chosen] < 0, self.radius, -self.radius).to(flat.dtype)
        return corner.reshape(slope.shape)

    def gauge(self, point: Tensor) -> float:
        """The larger of the two norms, each as a share of its bound."""
        sizes = point.detach().double().abs()
        return max(float(sizes.max()), float(sizes.sum()) / self.k) / self.radius


@dataclass(frozen=True)
class SupportBall:
    """The ball of the k-support norm: the hull of all points with k entries and a Euclidean norm up to ``radius``.

    Its corners keep the proportions of the k steepest entries, so it is smoother than the polytope (Argyriou et al.
    2012; as a constraint on networks, Zimmer et al. 2022).
    """

    k: int
    radius: float

    def __post_init__(self) -> None:
        _check(self.k, self.radius)

    @property
    def diameter(self) -> float:
        """Twice the radius."""
        return 2 * self.radius

    def corner(self, slope: Tensor) -> Tensor:
        """Straight against the k steepest entries; where nothing slopes, against k equal ones."""
        flat = slope.flatten()
        chosen = flat.abs().topk(self.k).indices
        steepest = flat[chosen]
        if not bool(steepest.any()):
            steepest = torch.ones_like(steepest)
        corner = torch.zeros_like(flat)
        corner[chosen] = -self.radius * steepest / steepest.norm()
        return corner.reshape(slope.shape)

    def gauge(self, point: Tensor) -> float:
        """The k-support norm over the radius.

        The norm's square is the least of sum(x^2 / t) / 1 over t in (0, 1] with sum(t) = k: the largest h entries take
        t = 1 and the others t in proportion to themselves, so every h < k for which no t exceeds 1 is a candidate.
        """
        sizes = point.detach().double().abs().flatten().sort(descending=True).values
        heads = torch.arange(min(self.k, len(sizes)), device=sizes.device)
        below = sizes.flip(0).cumsum(0).flip(0)[: len(heads)]  # what the entries from h on sum to
        squares = torch.cat([sizes.new_zeros(1), sizes.square().cumsum(0)])[: len(heads)]
        allowed = below / (self.k - heads) >= sizes[: len(heads)] * (1 - 1e-12)
        found = squares + below.square() / (self.k - heads)
        return math.sqrt(float(found[allowed].min())) / self.radius


def _check(k: int, radius: float) -> None:
    if k < 1 or not (math.isfinite(radius) and radius > 0):
        raise UserError(f"k = {k}, radius = {radius}: a region has corners of at least 1 entry and a positive radius")


def stride(lr: float, rescale: Rescale | None, slope: Tensor, toward: Tensor, region: Region) -> Tensor:
    """The share a of the way to a corner that a step goes, in [0, 1] (Pokutta et al. 2020).

    "gradient" makes the step as long as gradient descent's, lr ||m||; "fast_gradient" (Zimmer et al. 2022) takes half
    the diameter for the distance to the corner; "diameter" divides lr by the diameter, and None takes lr itself.
    """
    share = torch.as_tensor(lr, dtype=slope.dtype, device=slope.device)
    if rescale == "gradient":
        share = share * slope.norm() / toward.norm().clamp(min=torch.finfo(slope.dtype).tiny)
    elif rescale == "fast_gradient":
        share = share * slope.norm() / (region.diameter / 2)
    elif rescale == "diameter":
        share = share / region.diameter
    return share.clamp(0, 1)


def within(point: Tensor, region: Region) -> Tensor:
    """The point, scaled down to the region's edge where it lies outside."""
    gauge = region.gauge(point)
    return point / gauge if gauge > 1 else point


def floored(point: Tensor, region: Region) -> Tensor:
    """The shift of the released Frank-Wolfe pruning, for a point outside: a sum of m ``radius``, m a whole number.

    m is floor(||x||_1 / ||x||_inf), at most k. It ends somewhat inside of the polytope, and is not the nearest point.
    """
    if region.gauge(point) <= 1:
        return point
    largest, total = float(point.abs().max()), float(point.abs().sum())
    m = min(int(total / largest), region.k)
    return within(point * (m * region.radius / total), region)


def gap(point: Tensor, slope: Tensor, region: Region) -> float:
    """The Frank-Wolfe gap <slope, x - v>: an upper bound of how far a convex loss is from its least in the region."""
    return float((slope * (point - region.corner(slope))).sum())


REGIONS: Mapping[str, Callable[[int, float], Region]] = {"polytope": Polytope, "support": SupportBall}
SHIFTS: Mapping[str, Callable[[Tensor, Region], Tensor]] = {"divide": within, "floor": floored}
