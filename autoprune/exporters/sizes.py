"""A scheme from the sizes of tensors, or their zeros: what a network that somebody else pruned must have kept.

Every axis of every tensor is an equation: its size in the dense network, less what the groups on it lost, is its size
now. Most axes belong to one group and settle it; where several share an axis, the others are settled first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from autoprune import masking
from autoprune.errors import UserError
from autoprune.paths import existing
from autoprune.scheme import Scheme
from autoprune.slicing import named_tensors
from autoprune.space import Group, SearchSpace, Slice

Axis = tuple[str, int]


def of_network(network: nn.Module, space: SearchSpace) -> Scheme:
    """The counts of a pruned network with the tensors' names of the dense one."""
    if space.granularity != "channel":
        return _non_zero(dict(named_tensors(network)), space)
    return of_shapes({path: tuple(tensor.shape) for path, tensor in named_tensors(network)}, space)


def of_file(path: str | Path, space: SearchSpace) -> Scheme:
    """The counts of the network in a ``.safetensors`` file: its tensors' sizes, or their zeros."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    file = existing(path)
    try:
        if space.granularity != "channel":
            return _non_zero(load_file(file), space)
        with safe_open(file, "np") as stored:
            shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118 - no dict
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read as safetensors ({error})") from None
    return of_shapes(shapes, space)


def _non_zero(tensors: Mapping[str, Tensor], space: SearchSpace) -> Scheme:
    for group in space.groups:
        path = str(group.tensor)
        if path not in tensors or tuple(tensors[path].shape) != tuple(space.shapes[path]):
            found = f"of shape {tuple(tensors[path].shape)}" if path in tensors else "missing"
            raise UserError(f"{path} is {found}, where the dense network has {tuple(space.shapes[path])}")
    return masking.non_zero(tensors, space)


def of_shapes(shapes: Mapping[str, Sequence[int]], space: SearchSpace) -> Scheme:
    """The counts that give the parameters these shapes; all parameters of the groups must be there."""
    sizes = {}
    for group in space.groups:
        for piece in group.slices:
            if piece.path not in space.shapes:  # a buffer
                continue
            shape, dense = shapes.get(piece.path), space.shapes[piece.path]
            if shape is None or len(shape) != len(dense):
                found = "missing" if shape is None else f"of shape {tuple(shape)}"
                raise UserError(
                    f"{piece.path} is {found}, where the dense network has {tuple(dense)}: is it a pruned form of it?"
                )
            sizes[piece.path, piece.axis] = int(shape[piece.axis])
    return solve(sizes, space)


def solve(sizes: Mapping[Axis, int], space: SearchSpace) -> Scheme:
    """The counts under which axes of tensors, ``(path, axis)``, have these sizes; refuses what fits no scheme."""
    members: dict[Axis, list[tuple[int, Slice]]] = defaultdict(list)
    for position, group in enumerate(space.groups):
        for piece in group.slices:
            if (piece.path, piece.axis) in sizes:
                members[piece.path, piece.axis].append((position, piece))
    units: dict[int, int] = {}
    waiting = dict(members)
    while waiting:
        ready = [axis for axis, pieces in waiting.items() if len({p for p, _ in pieces} - units.keys()) <= 1]
        if not ready:
            names = sorted({space.groups[p].name for pieces in waiting.values() for p, _ in pieces if p not in units})
            raise UserError(f"the sizes do not tell apart what groups {', '.join(names)} keep: give a scheme file")
        for axis in ready:
            _settle(axis, sizes[axis], waiting.pop(axis), units, space)
    silent = [group.name for position, group in enumerate(space.groups) if position not in units]
    if silent:
        raise UserError(f"the sizes say nothing about group {silent[0]}: give a scheme file")
    scheme = Scheme(
        tuple(units[position] * group.unit for position, group in enumerate(space.groups)), space.granularity
    )
    space.check(scheme)
    return scheme


def _settle(
    axis: Axis, size: int, pieces: Sequence[tuple[int, Slice]], units: dict[int, int], space: SearchSpace
) -> None:
    """One equation with at most one unknown group: solve it, or check it."""
    path, number = axis
    left = size - space.shapes[path][number]
    unknown = {position for position, _ in pieces} - units.keys()
    for position, piece in pieces:
        per_unit = piece.positions.shape[1]
        left += (space.groups[position].units - units.get(position, 0)) * per_unit
    if not unknown:
        if left != 0:
            raise _contradiction(axis, size, [space.groups[position] for position, _ in pieces])
        return
    (position,) = unknown
    per_unit = sum(piece.positions.shape[1] for other, piece in pieces if other == position)
    if left % per_unit or not 0 < left // per_unit <= space.groups[position].units:
        raise _contradiction(axis, size, [space.groups[position]])
    units[position] = left // per_unit


def _contradiction(axis: Axis, size: int, groups: Sequence[Group]) -> UserError:
    names = ", ".join(dict.fromkeys(group.name for group in groups))
    return UserError(
        f"axis {axis[1]} of {axis[0]} has {size} entries, which no scheme of this space gives it (group {names}): "
        "was the network pruned along other groups?"
    )
