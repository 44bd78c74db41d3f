"""Any network and an example input become a search space: follow the channels, build groups, prove them.

How channels are followed is told in :mod:`autoprune.search_spaces.labels`, how a group is proved in
:mod:`autoprune.search_spaces.proof`. What cannot be offered is listed in ``SearchSpace.left_out`` with
the reason. The caller's model is only read: all work happens on a copy.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from autoprune.errors import UserError
from autoprune.forward import Example, batch_size, call, outputs
from autoprune.space import Group, Layer, LeftOut, SearchSpace, Slice

from .labels import Follow, Ledger, ParameterAxis
from .proof import Proof, prove


class UnprovedWarning(UserWarning):
    """Some channels were found but could not be proved prunable."""


def trace(
    model: nn.Module,
    example: Example,
    *,
    time_limit: float = 120.0,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> SearchSpace:
    """The search space of ``model`` for inputs like ``example``.

    ``example`` is what ``forward`` takes: a tensor, a tuple of positional or a dict of keyword arguments,
    with a leading batch axis. Frozen parameters and batch norm in training mode make no difference.
    Output channels of the network are never cut. A group that the proof rejects within ``time_limit``
    seconds is left out with an :class:`UnprovedWarning`.

    Raises :class:`UserError` when the forward pass itself fails.
    """
    if not any(True for _ in model.parameters()):
        raise UserError(f"{type(model).__name__} has no parameters: there is nothing to prune")
    scratch = _scratch(model, training=False)
    book = _follow(scratch, example)
    auxiliary = _auxiliary(model, example, book)
    if auxiliary is not None:
        scratch, full = auxiliary
        full.uses = book.uses  # costs are those of inference
        book = full
    groups, reasons = _groups(book)
    layers = _layers(book, batch_size(example))
    shapes = {path: tuple(p.shape) for path, p in model.named_parameters()}
    space = SearchSpace(groups, layers, shapes)
    failed = prove(Proof(scratch, example, space, seed), time_limit, progress) if groups else {}
    if failed:
        names = "; ".join(f"{name} ({reason})" for name, reason in failed.items())
        warnings.warn(f"{len(failed)} groups left out, not proved: {names}", UnprovedWarning, stacklevel=2)
    proved = tuple(group for group in groups if group.name not in failed)
    left_out = _left_out(book, proved, failed, reasons)
    return SearchSpace(proved, layers, shapes, left_out)


def _scratch(model: nn.Module, *, training: bool) -> nn.Module:
    """A copy whose leaves are in evaluation mode (no dropout, fixed statistics); containers as asked."""
    scratch = copy.deepcopy(model)
    for module in scratch.modules():
        module.training = training and any(True for _ in module.children())
    return scratch


def _follow(model: nn.Module, example: Example) -> Ledger:
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one fused operator would hide the linear layers
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), Follow(model) as follow:
            result = call(model, example)
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{type(model).__name__} cannot run on the example input: {type(error).__name__}: "
            f"{reason[0] if reason else ''}; give an input that model(example) accepts"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    for tensor in outputs(result):
        follow.freeze_all(tensor, "it is the network's output")
    return follow.ledger


def _auxiliary(model: nn.Module, example: Example, inference: Ledger) -> tuple[nn.Module, Ledger] | None:
    """The pass in training mode, if it uses layers that inference does not (auxiliary heads)."""
    unused = [path for path, axes in inference.axes.items() if axes and axes[0].order < 0]
    if not unused:
        return None
    scratch = _scratch(model, training=True)
    try:
        book = _follow(scratch, example)
    except UserError:  # an auxiliary head that needs larger inputs
        return None
    used = any(book.axes[path] and book.axes[path][0].order >= 0 for path in unused)
    return (scratch, book) if used else None


def _components(book: Ledger) -> NDArray[np.int64]:
    """The unit that each label belongs to."""
    if not book.edges:
        return np.arange(book.count)
    a = np.concatenate([edge[0] for edge in book.edges])
    b = np.concatenate([edge[1] for edge in book.edges])
    graph = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(book.count, book.count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _groups(book: Ledger) -> tuple[tuple[Group, ...], dict[str, str]]:
    """Units with the same footprint form a group; also the reason per frozen parameter axis."""
    unit_of = _components(book)
    frozen: dict[int, str] = {}
    for labels, reason in book.frozen:
        for unit in np.unique(unit_of[labels]):
            frozen.setdefault(int(unit), reason)
    axes = [axis for entries in book.axes.values() for axis in entries if len(axis.labels)]
    axes.sort(key=lambda axis: (axis.order, axis.path, axis.axis))
    footprint: dict[int, list[tuple[int, int]]] = defaultdict(list)  # unit -> [(axis, position)]
    for number, axis in enumerate(axes):
        for position, unit in enumerate(unit_of[axis.labels]):
            footprint[int(unit)].append((number, position))
    shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)  # signature -> units
    for unit, places in footprint.items():
        if unit not in frozen:
            shapes[tuple(number for number, _ in places)].append(unit)
    found = [
        group
        for signature, units in shapes.items()
        if (group := _group([axes[number] for number in signature], [footprint[unit] for unit in units])) is not None
    ]
    order = {axis.path: axis.order for axis in axes}
    found.sort(key=lambda group: (order[group.slices[0].path], int(group.slices[0].positions[0, 0])))
    reasons = {axis.path: reason for axis in axes if axis.role == "out" and (reason := _reason(axis, unit_of, frozen))}
    return _named_apart(found), reasons


def _reason(axis: ParameterAxis, unit_of: NDArray[np.int64], frozen: dict[int, str]) -> str | None:
    for unit in unit_of[axis.labels]:
        if int(unit) in frozen:
            return frozen[int(unit)]
    return None


def _group(signature: list[ParameterAxis], places: list[list[tuple[int, int]]]) -> Group | None:
    """A group from units that touch the same axes equally often; None if nobody makes or reads them."""
    roles = {axis.role for axis in signature}
    if len(places) < 2 or not {"out", "in"} <= roles:
        return None
    root = next(i for i, axis in enumerate(signature) if axis.role == "out")
    places = sorted(places, key=lambda unit: unit[root][1])
    positions = np.array([[position for _, position in unit] for unit in places], dtype=np.int64)
    slices: list[Slice] = []
    start = 0
    while start < len(signature):
        axis = signature[start]
        stop = start
        while stop < len(signature) and signature[stop] is axis:
            stop += 1
        module, _, tensor = axis.path.rpartition(".")
        slices.append(Slice(module, tensor, axis.axis, axis.role, positions[:, start:stop]))
        start = stop
    slices.sort(key=lambda piece: piece.path != signature[root].path or piece.axis != signature[root].axis)
    unit = slices[0].positions.shape[1]
    width = unit * len(places)
    return Group(slices[0].module or slices[0].tensor, width, tuple(slices), tuple(range(unit, width + 1, unit)), unit)


def _named_apart(groups: list[Group]) -> tuple[Group, ...]:
    """Number the groups that one layer produces, if there are several."""
    seen: dict[str, int] = defaultdict(int)
    for group in groups:
        seen[group.name] += 1
    number: dict[str, int] = defaultdict(int)
    result = []
    for group in groups:
        name = group.name
        if seen[name] > 1:
            number[name] += 1
            name = f"{name}#{number[name]}"
        result.append(Group(name, group.width, group.slices, group.counts, group.unit))
    return tuple(result)


def _layers(book: Ledger, batch: int) -> tuple[Layer, ...]:
    order = {path: axes[0].order for path, axes in book.axes.items() if axes}
    layers = []
    for use in sorted(book.uses.values(), key=lambda use: order[use.path]):
        module, _, tensor = use.path.rpartition(".")
        layers.append(
            Layer(
                name=module if tensor == "weight" else use.path,
                kind="conv" if use.kind == "conv" else "linear",
                weight=use.path,
                positions=round(use.applications / batch),
                kernel=use.kernel,
                stride=use.stride,
                groups=use.groups,
                input_size=use.input_size,
            )
        )
    return tuple(layers)


def _left_out(
    book: Ledger, proved: tuple[Group, ...], failed: dict[str, str], reasons: dict[str, str]
) -> tuple[LeftOut, ...]:
    """Layers whose own output channels stay whole, with the reason."""
    cut = {piece.path for group in proved for piece in group.slices if piece.role != "in"}
    result = []
    for use in sorted(book.uses.values(), key=lambda use: book.axes[use.path][0].order):
        if use.path in cut:
            continue
        name = use.path.removesuffix(".weight")
        reason = failed.get(name) or reasons.get(use.path) or _default_reason(book, use.path)
        result.append(LeftOut(name, reason))
    return tuple(result)


def _default_reason(book: Ledger, path: str) -> str:
    if any(axis.role == "out" for axis in book.axes[path]):
        return "no layer that can be narrowed reads its channels"
    return "its channels follow a layer that is left out"



