"""What a scheme does to single layers: a scheme counts channels of groups, other tools speak of layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from autoprune.errors import UserError
from autoprune.exporters import bins
from autoprune.exporters.notice import tell
from autoprune.scheme import Scheme
from autoprune.space import Group, Layer, SearchSpace, Slice

REMEDY = "keep this group whole, or hand over the pruned network"


@dataclass(frozen=True, eq=False)
class Cut:
    """A group that loses something, and how many channels stay."""

    group: Group
    kept: int

    def __str__(self) -> str:
        return f"the channels of group {self.group.name}"


@dataclass(frozen=True, eq=False)
class Made:
    """The output channels of one layer, all of them of one group: ``width``, of which ``kept`` stay."""

    layer: Layer
    width: int
    kept: int

    @property
    def module(self) -> str:
        """The module's dotted name."""
        return self.layer.name


@dataclass(frozen=True)
class Weight:
    """A layer's weight: entries, and how many of them the pruned layer still has."""

    layer: Layer
    entries: int
    kept: int

    @property
    def removed(self) -> float:
        """The share of the entries that go."""
        return (self.entries - self.kept) / self.entries


def cuts(scheme: Scheme, space: SearchSpace, tool: str) -> list[Cut]:
    """The groups that lose channels; a scheme of another granularity or another space is refused."""
    if scheme.granularity != "channel":
        raise UserError(
            f"{tool} is told of whole channels here, and the scheme is of granularity {scheme.granularity!r}: "
            "export a scheme of a channel space"
        )
    space.check(scheme)
    pairs = zip(space.groups, scheme.kept, strict=True)
    return [Cut(group, kept) for group, kept in pairs if kept < group.width]


def made(cut: Cut, space: SearchSpace, tool: str) -> list[Made]:
    """The layers that make a group's channels, in forward order.

    Refused are parameters that belong to no layer, and layers of which the group has only some of the channels,
    because the tool has one rate per layer.
    """
    found = []
    for piece in _makers(cut):
        layer = layers(space).get(piece.path)
        if piece.tensor != "weight" or layer is None:
            raise UserError(
                f"{cut} are made by {piece.path}, no convolution or linear layer that {tool} could cut; {REMEDY}"
            )
        size = space.shapes[piece.path][piece.axis]
        if piece.positions.size != size:
            raise UserError(
                f"{cut} are {piece.positions.size} of the {size} channels of {layer.name}, and {tool} has one rate per "
                f"layer; {REMEDY}"
            )
        of_groups = layer.groups if layer.kind == "conv" and piece.axis == 1 else 1  # a transposed convolution
        width = size * of_groups
        found.append(Made(layer, width, width * cut.kept // cut.group.width))
    return found


def _makers(cut: Cut) -> list[Slice]:
    return [piece for piece in cut.group.slices if piece.role == "out"]


def alone(cut: Cut, space: SearchSpace, tool: str, remedy: str = REMEDY) -> Made:
    """The one layer that makes a group's channels one by one, for tools that know no coupling."""
    makers = made(cut, space, tool)
    if len(makers) > 1:
        names = ", ".join(maker.module for maker in makers)
        raise UserError(f"{cut} are made by {len(makers)} layers ({names}), and {tool} cuts each by itself; {remedy}")
    one_by_one(cut, tool, remedy)
    return makers[0]


def one_by_one(cut: Cut, tool: str, remedy: str = REMEDY) -> None:
    """Refuse a group whose channels leave several at a time."""
    if cut.group.unit > 1:
        raise UserError(
            f"{cut} leave {cut.group.unit} at a time because of a grouped convolution, "
            f"and {tool} takes them one by one; {remedy}"
        )


def rate(cut: Cut, makers: Sequence[Made], tool: str) -> float:
    """The one removed rate from which ``int(width * rate)`` is right for every layer of a group."""
    finest = max(makers, key=lambda maker: maker.width)
    value = bins.removed(finest.width, finest.kept)
    for maker in makers:
        if int(maker.width * value) != maker.width - maker.kept:
            raise UserError(
                f"{cut} are {maker.width} in {maker.module} and {finest.width} in {finest.module}: {tool} has no "
                f"single rate for both; {REMEDY}"
            )
    return value


def weights(scheme: Scheme, space: SearchSpace, tool: str) -> list[Weight]:
    """Every convolution and linear layer in forward order, with the entries of its weight before and after."""
    if scheme.granularity != "channel":
        kept = entries(scheme, space)
        return [
            Weight(one, prod(space.shapes[p]), kept.get(p, prod(space.shapes[p]))) for p, one in layers(space).items()
        ]
    gone = _gone(cuts(scheme, space, tool))
    found = []
    for path, layer in layers(space).items():
        shape = space.shapes[path]
        left = prod(size - gone[path, axis] for axis, size in enumerate(shape))
        found.append(Weight(layer, prod(shape), left))
    return found


def entries(scheme: Scheme, space: SearchSpace) -> dict[str, int]:
    """How many single weights stay in every tensor of the space, for schemes that count those."""
    space.check(scheme)
    return {str(group.tensor): kept for group, kept in zip(space.groups, scheme.kept, strict=True)}


def block(scheme: Scheme, space: SearchSpace) -> int:
    """The m of a scheme that keeps n of m neighbours, 1 for any other."""
    return space.groups[0].units if scheme.granularity == "n:m" else 1


def without_pattern(scheme: Scheme, space: SearchSpace, tool: str) -> None:
    """Warn that a format has shares of weights, but no word for n of m neighbours."""
    if scheme.granularity == "n:m":
        tell(f"{tool} knows shares of a layer's weights", [f"n of {block(scheme, space)} neighbours -> n of all"])


def inputs(scheme: Scheme, space: SearchSpace, tool: str) -> dict[str, tuple[int, int]]:
    """Input channels of every layer, and how many stay: a flattened channel counts as often as it is read."""
    gone = _gone(cuts(scheme, space, tool))
    axes = {piece.path: piece.axis for group in space.groups for piece in group.slices if piece.role == "in"}
    found = {}
    for path, layer in layers(space).items():
        axis = axes.get(path, 1)
        per_entry = layer.groups if axis == 1 else 1
        size = space.shapes[path][axis]
        found[layer.name] = size * per_entry, (size - gone[path, axis]) * per_entry
    return found


def _gone(cut: Sequence[Cut]) -> dict[tuple[str, int], int]:
    """Entries that leave every axis of every tensor."""
    gone: dict[tuple[str, int], int] = defaultdict(int)
    for one in cut:
        units = one.group.units - one.kept // one.group.unit
        for piece in one.group.slices:
            gone[piece.path, piece.axis] += units * piece.positions.shape[1]
    return gone


def layers(space: SearchSpace) -> dict[str, Layer]:
    """The convolution and linear layers by the name of their weight, in forward order; one used twice counts once."""
    found: dict[str, Layer] = {}
    for layer in space.layers:
        found.setdefault(layer.weight, layer)
    return found
