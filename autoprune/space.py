"""The search space: which channels must be cut together, and how many of them may stay."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autoprune.errors import UserError
from autoprune.scheme import Granularity, Scheme

Role = Literal["out", "in", "through"]
Counts = NDArray[np.int64]
Rates = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Slice:
    """Where the units of a group lie in one tensor of the network.

    ``positions`` has shape (units, per_unit): row u lists the entries of axis ``axis`` of
    ``module.tensor`` that vanish with unit u. The role says what the axis does in the forward pass:
    it produces the channels ("out"), consumes them ("in") or carries them along ("through": batch
    norm, depthwise convolution, bias).
    """

    module: str
    tensor: str
    axis: int
    role: Role
    positions: NDArray[np.int64]

    @property
    def path(self) -> str:
        """Dotted name of the tensor, as in ``state_dict``."""
        return f"{self.module}.{self.tensor}" if self.module else self.tensor


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that must be cut together.

    ``width`` counts the channels of the first slice, which belongs to the layer that produces them
    and lends the group its name. ``counts`` are the legal numbers of kept channels, ascending; the last
    one is ``width`` unless somebody limited the group from above. Channels leave in units of ``unit``
    (1, or the number of convolution groups when a grouped convolution takes part).
    """

    name: str
    width: int
    slices: tuple[Slice, ...]
    counts: tuple[int, ...]
    unit: int = 1

    def __post_init__(self) -> None:
        if not self.counts or self.counts[-1] > self.width or list(self.counts) != sorted(set(self.counts)):
            raise UserError(f"group {self.name}: counts must ascend and not exceed the width {self.width}")
        if self.counts[0] < 1 or any(count % self.unit for count in self.counts):
            raise UserError(f"group {self.name}: counts must be positive multiples of {self.unit}")
        for piece in self.slices:
            if piece.positions.ndim != 2 or len(piece.positions) != self.units:
                raise UserError(f"group {self.name}: {piece.path} does not list {self.units} units")

    @property
    def units(self) -> int:
        """How many pieces can be removed one by one."""
        return self.width // self.unit

    @cached_property
    def members(self) -> tuple[str, ...]:
        """The modules that lose something when the group is cut, in forward order."""
        return tuple(dict.fromkeys(piece.module for piece in self.slices))

    def floor(self, count: float) -> int:
        """The largest legal count that is not above ``count`` (the smallest legal one if none is)."""
        return self.counts[max(0, bisect_right(self.counts, count + 1e-9) - 1)]

    def nearest(self, count: float) -> int:
        """The legal count nearest to ``count``, the smaller of two that are equally near."""
        at = bisect_left(self.counts, count)
        return min(self.counts[max(at - 1, 0) : at + 1], key=lambda legal: abs(legal - count))

    def channels(self, units: Sequence[int] | NDArray[np.int64]) -> list[int]:
        """The producing layer's channel numbers, ascending, of the given units."""
        return sorted(int(c) for c in self.slices[0].positions[np.asarray(units, dtype=np.int64)].ravel())


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer as costs and an agent's state see it.

    ``positions`` is how often every weight is multiplied per sample (output pixels of a convolution,
    rows of a linear layer); MACs = positions x entries of the weight. ``input_size`` is the spatial
    size that arrives, (1, 1) for a linear layer.
    """

    name: str
    kind: Literal["conv", "linear"]
    weight: str
    positions: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    input_size: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class LeftOut:
    """Something that could not be offered for pruning, and why."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Ordered groups, and the facts about the network that costs need.

    ``shapes`` holds the shape of every parameter by its dotted name. Nothing here refers to the
    model itself: the space is a value that travels to workers and lives in a file.
    """

    groups: tuple[Group, ...]
    layers: tuple[Layer, ...]
    shapes: Mapping[str, tuple[int, ...]]
    left_out: tuple[LeftOut, ...] = ()
    granularity: Granularity = field(default="channel")

    def __post_init__(self) -> None:
        names = [group.name for group in self.groups]
        if len(set(names)) != len(names):
            raise UserError("two groups of a search space have the same name")

    def __len__(self) -> int:
        return len(self.groups)

    def index(self, name: str) -> int:
        """The position of the group called ``name``."""
        for position, group in enumerate(self.groups):
            if group.name == name:
                return position
        raise UserError(f"no group is called {name!r}; `autoprune groups` lists them")

    @cached_property
    def widths(self) -> Counts:
        """Original channels per group."""
        return np.array([group.width for group in self.groups], dtype=np.int64)

    @property
    def dense(self) -> Scheme:
        """The scheme that cuts nothing: the reference of every cost, and always legal."""
        return Scheme(tuple(group.width for group in self.groups), self.granularity)

    @property
    def smallest(self) -> Scheme:
        """The scheme that keeps the smallest legal count everywhere."""
        return Scheme(tuple(group.counts[0] for group in self.groups), self.granularity)

    @property
    def largest(self) -> Scheme:
        """The scheme that keeps the largest legal count everywhere: the dense one, unless groups are limited."""
        return Scheme(tuple(group.counts[-1] for group in self.groups), self.granularity)

    def floor(self, rates: Sequence[float] | Rates) -> Scheme:
        """The largest scheme that keeps at most ``rates`` (kept / width) of every group."""
        wanted = np.asarray(rates, dtype=np.float64) * self.widths
        return Scheme(tuple(g.floor(w) for g, w in zip(self.groups, wanted, strict=True)), self.granularity)

    def rates(self, scheme: Scheme) -> Rates:
        """Kept fraction of every group."""
        return np.asarray(scheme.kept, dtype=np.float64) / self.widths

    def check(self, scheme: Scheme) -> None:
        """Refuse a scheme that this space cannot have, naming the group that is wrong.

        A group may always keep its whole width, so the dense scheme passes in a limited space too.
        """
        if len(scheme) != len(self):
            raise UserError(f"the scheme has {len(scheme)} groups, the search space {len(self)}")
        for position, (group, count) in enumerate(zip(self.groups, scheme.kept, strict=True)):
            if count not in group.counts and count != group.width:
                near = f"{group.counts[0]}..{group.counts[-1]}" + (f" by {group.unit}" if group.unit > 1 else "")
                raise UserError(f"group {group.name}: {count} kept channels is not a legal count ({near})")
            if scheme.indices is not None:
                chosen = scheme.indices[position]
                if len(chosen) * group.unit != count or (chosen and chosen[-1] >= group.units):
                    raise UserError(f"group {group.name}: the kept indices do not select {count} channels")

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of everything that decides what a scheme of this space means."""
        digest = hashlib.sha256()
        for group in self.groups:
            head = [group.name, group.width, group.unit, group.counts]
            digest.update(json.dumps(head).encode())
            for piece in group.slices:
                digest.update(f"{piece.path}/{piece.axis}/{piece.role}".encode())
                digest.update(np.ascontiguousarray(piece.positions).tobytes())
        digest.update(json.dumps([vars(layer) for layer in self.layers], sort_keys=True).encode())
        digest.update(json.dumps(dict(self.shapes), sort_keys=True).encode())
        return digest.hexdigest()[:16]
