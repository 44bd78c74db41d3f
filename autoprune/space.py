"""The search space: which channels must be cut together, or which tensors lose weights, and how many may stay."""

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
from autoprune.scheme import NOUNS, Granularity, Scheme

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
    """Channels that must be cut together, or the weights of one tensor.

    ``width`` counts the channels of the first slice, which belongs to the layer that produces them
    and lends the group its name. ``counts`` are the legal numbers of kept channels, ascending; the last
    one is ``width`` unless somebody limited the group from above. Channels leave in units of ``unit``
    (1, or the number of convolution groups when a grouped convolution takes part).

    A group of single weights has no slices but a ``tensor``, whose entries are its width and whose layer is its
    name; an entry takes ``itemsize`` bytes. Where n of m neighbours stay, a unit is one weight of every block of m:
    there are m units.
    """

    name: str
    width: int
    slices: tuple[Slice, ...]
    counts: tuple[int, ...]
    unit: int = 1
    tensor: str | None = None
    itemsize: int = 4

    def __post_init__(self) -> None:
        if not self.counts or self.counts[-1] > self.width or list(self.counts) != sorted(set(self.counts)):
            raise UserError(f"group {self.name}: counts must ascend and not exceed the width {self.width}")
        if self.counts[0] < 1 or any(count % self.unit for count in self.counts):
            raise UserError(f"group {self.name}: counts must be positive multiples of {self.unit}")
        if self.tensor is not None and (self.slices or self.width % self.unit):
            raise UserError(f"group {self.name}: weights of {self.tensor} leave no slices, and blocks must fill it")
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
        if self.tensor is not None:
            return (self.tensor.rpartition(".")[0],)
        return tuple(dict.fromkeys(piece.module for piece in self.slices))

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """The tensors that lose something, by dotted name."""
        return (self.tensor,) if self.tensor is not None else tuple(dict.fromkeys(piece.path for piece in self.slices))

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
        tensors = [group.tensor for group in self.groups if group.tensor is not None]
        twice = next((tensor for tensor in tensors if tensors.count(tensor) > 1), None)
        if twice is not None:
            raise UserError(f"{twice} is named twice: a tensor has one sparsity, so it stands in one group")

    def __len__(self) -> int:
        return len(self.groups)

    def index(self, name: str) -> int:
        """The position of the group called ``name``."""
        for position, group in enumerate(self.groups):
            if group.name == name:
                return position
        raise UserError(f"no group is called {name!r}; `autoprune groups` lists them")

    @property
    def noun(self) -> str:
        """What is counted, in words: channels or weights."""
        return NOUNS[self.granularity]

    @cached_property
    def widths(self) -> Counts:
        """Original channels, or weights, per group."""
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

        A group may always keep its whole width, so the dense scheme passes in a limited space too. A tensor may keep
        any number of weights, under n:m any n of m: the counts are only those that searchers try.
        """
        if len(scheme) != len(self):
            raise UserError(f"the scheme has {len(scheme)} groups, the search space {len(self)}")
        if scheme.granularity != self.granularity:
            raise UserError(
                f"the scheme is of granularity {scheme.granularity!r}, the search space of {self.granularity!r}"
            )
        for position, (group, count) in enumerate(zip(self.groups, scheme.kept, strict=True)):
            loose = self.granularity != "channel" and count < group.width and not count % group.unit
            if count not in group.counts and count != group.width and not loose:
                near = f"{group.counts[0]}..{group.counts[-1]}" + (f" by {group.unit}" if group.unit > 1 else "")
                raise UserError(f"group {group.name}: {count} kept {self.noun} is not a legal count ({near})")
            if scheme.indices is not None and self.granularity != "channel":
                raise UserError("a scheme of single weights has no kept indices: the network itself has the zeros")
            if scheme.indices is not None:
                chosen = scheme.indices[position]
                if len(chosen) * group.unit != count or (chosen and chosen[-1] >= group.units):
                    raise UserError(f"group {group.name}: the kept indices do not select {count} channels")

    @cached_property
    def fingerprint(self) -> str:
        """A short hash of everything that decides what a scheme of this space means."""
        digest = hashlib.sha256()
        for group in self.groups:
            head: list[object] = [group.name, group.width, group.unit, group.counts]
            if self.granularity != "channel":
                head += [self.granularity, group.tensor, group.itemsize]
            digest.update(json.dumps(head).encode())
            for piece in group.slices:
                digest.update(f"{piece.path}/{piece.axis}/{piece.role}".encode())
                digest.update(np.ascontiguousarray(piece.positions).tobytes())
        digest.update(json.dumps([vars(layer) for layer in self.layers], sort_keys=True).encode())
        digest.update(json.dumps(dict(self.shapes), sort_keys=True).encode())
        return digest.hexdigest()[:16]
