"""Any network and an example input become a search space: follow the channels, build groups, prove them.

How channels are followed is told in :mod:`autoprune.search_spaces.labels`, how a group is proved in
:mod:`autoprune.search_spaces.proof`. What cannot be offered is listed in ``SearchSpace.left_out`` with
the reason. The caller's model is only read: all work happens on a copy.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import nn

from autoprune.errors import UserError
from autoprune.forward import Example, batch_size
from autoprune.space import Group, Layer, LeftOut, SearchSpace, Slice

from .follow import follow
from .labels import Book, ParameterAxis
from .proof import Proof, prove
from .rules.moving import ALONE

Places = list[tuple[int, int]]  # where a unit lies: (number of the axis, position on it)


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
    with a leading batch axis; one or two samples are enough. Frozen parameters and batch norm in training
    mode make no difference. Output channels of the network are never cut. A group that the proof does not
    accept within ``time_limit`` seconds is left out with an :class:`UnprovedWarning`.

    Costs count the layers that inference uses and that are stored as parameters. Layers used in training
    only (auxiliary heads) are cut along where the example is large enough to run them.

    Raises :class:`UserError` when the model cannot be copied or its forward pass fails.
    """
    _check(model)
    scratch = _scratch(model, training=False)
    inference = follow(scratch, example)
    scratch, book = _with_auxiliary(model, example, inference) or (scratch, inference)
    found, reasons = _groups(book)
    found = tuple(group for group in found if any(inference.order(piece.path) >= 0 for piece in group.slices))
    parameters = {path: tuple(parameter.shape) for path, parameter in model.named_parameters()}
    layers = _layers(inference, batch_size(example), parameters)
    space = SearchSpace(found, layers, parameters)
    failed = prove(Proof(scratch, example, space, seed), time_limit, seed, progress) if found else {}
    if failed:
        warnings.warn(_unproved(failed, len(found)), UnprovedWarning, stacklevel=2)
    groups = tuple(group for group in found if group.name not in failed)
    return SearchSpace(groups, layers, parameters, _left_out(model, book, space, failed, reasons))


def measured(model: nn.Module, example: Example) -> tuple[tuple[Layer, ...], dict[str, tuple[int, ...]]]:
    """What costs need to know of a network: its layers in forward order, and the shape of every parameter."""
    _check(model)
    parameters = {path: tuple(parameter.shape) for path, parameter in model.named_parameters()}
    return _layers(follow(_scratch(model, training=False), example), batch_size(example), parameters), parameters


def _check(model: nn.Module) -> None:
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(f"{name} is TorchScript, whose layers cannot be replaced: give the network it was made from")
    if not any(True for _ in model.parameters()):
        raise UserError(f"{name} has no parameters: there is nothing to prune")
    if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in model.parameters()):
        raise UserError(f"{name} has lazy layers without a size yet: run it once on an input first")


# -- following the network --------------------------------------------------------------------


def _scratch(model: nn.Module, *, training: bool) -> nn.Module:
    """A copy in evaluation mode (no dropout, fixed statistics); ``training`` is what its containers see.

    Containers decide whether auxiliary heads run; torch's own ones would only switch on their dropout.
    """
    try:
        scratch = copy.deepcopy(model)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
        raise UserError(
            f"{type(model).__name__} cannot be copied ({reason}): a network must hold no tensor with a gradient "
            "history (torch's old weight_norm leaves one) and nothing tied to this process"
        ) from error
    for module in scratch.modules():
        container = any(True for _ in module.children()) and not isinstance(module, nn.modules.batchnorm._BatchNorm)
        module.training = training and container and not type(module).__module__.startswith("torch.nn")
    return scratch


def _with_auxiliary(model: nn.Module, example: Example, inference: Book) -> tuple[nn.Module, Book] | None:
    """The pass in training mode, if it uses layers that inference does not (auxiliary heads)."""
    unused = [path for path, axes in inference.axes.items() if axes and inference.order(path) < 0]
    if not unused:
        return None
    scratch = _scratch(model, training=True)
    try:
        book = follow(scratch, example)
    except UserError:  # an auxiliary head that needs larger inputs
        return None
    return (scratch, book) if any(book.order(path) >= 0 for path in unused) else None


# -- from labels to groups --------------------------------------------------------------------


def _groups(book: Book) -> tuple[tuple[Group, ...], dict[str, str]]:
    """Units with the same footprint form a group; also, by tensor, why channels it makes stay."""
    unit_of = _units(book)
    frozen: dict[int, str] = {}
    for labels, reason in book.frozen:
        for unit in np.unique(unit_of[labels]):
            frozen.setdefault(int(unit), reason)
    axes = [axis for entries in book.axes.values() for axis in entries if len(axis.labels)]
    axes.sort(key=lambda axis: (axis.order, axis.path, axis.axis))
    found: list[Group] = []
    reasons: dict[str, str] = {}
    for numbers, units in _alike(axes, unit_of, frozen).items():
        made = _group([axes[number] for number in numbers], units)
        if isinstance(made, Group):
            found.append(made)
        else:
            reasons |= {axes[number].path: made for number in numbers if _carries(axes[number])}
    for axis in axes:
        why = next((frozen[int(unit)] for unit in unit_of[axis.labels] if int(unit) in frozen), None)
        if why is not None and _carries(axis):
            reasons[axis.path] = why
    found.sort(key=lambda group: (book.order(group.slices[0].path), int(group.slices[0].positions[0, 0])))
    return _named_apart(found), reasons


def _alike(
    axes: list[ParameterAxis], unit_of: NDArray[np.int64], frozen: Container[int]
) -> dict[tuple[int, ...], list[Places]]:
    """The units that may leave, by the axes they touch and how often they touch each."""
    footprints: dict[int, Places] = defaultdict(list)
    for number, axis in enumerate(axes):
        for position, unit in enumerate(unit_of[axis.labels]):
            footprints[int(unit)].append((number, position))
    alike: dict[tuple[int, ...], list[Places]] = defaultdict(list)
    for unit, places in footprints.items():
        if unit not in frozen:
            alike[tuple(number for number, _ in places)].append(places)
    return alike


def _carries(axis: ParameterAxis) -> bool:
    """Whether a tensor's own channels lie along this axis, rather than those it reads or its kernel."""
    return axis.role == "out" or (axis.role == "through" and axis.axis == 0)


def _units(book: Book) -> NDArray[np.int64]:
    """The unit that each label belongs to: its connected component."""
    if not book.edges:
        return np.arange(book.count)
    a, b = (np.concatenate(ends) for ends in zip(*book.edges, strict=True))
    graph = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(book.count, book.count))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _group(signature: list[ParameterAxis], units: list[Places]) -> Group | str:
    """A group from units that touch the same axes equally often, or why there is none."""
    roles = [axis.role for axis in signature]
    if "out" not in roles:
        return "no layer makes its channels"
    if "in" not in roles:
        return "no layer that can be narrowed reads its channels"
    if len(units) < 2:
        return ALONE
    first = roles.index("out")
    root = signature[first]
    units = sorted(units, key=lambda places: places[first][1])
    positions = np.array([[position for _, position in places] for places in units], dtype=np.int64)
    slices: list[Slice] = []
    for _, columns in groupby(range(len(signature)), key=lambda column: id(signature[column])):
        chosen = list(columns)
        axis = signature[chosen[0]]
        module, _, tensor = axis.path.rpartition(".")
        slices.append(Slice(module, tensor, axis.axis, axis.role, positions[:, chosen]))
    slices.sort(key=lambda piece: (piece.path, piece.axis) != (root.path, root.axis))
    unit = slices[0].positions.shape[1]
    width = unit * len(units)
    return Group(slices[0].module or slices[0].tensor, width, tuple(slices), tuple(range(unit, width + 1, unit)), unit)


def _named_apart(groups: list[Group]) -> tuple[Group, ...]:
    """Number the groups that one layer makes, if there are several."""
    total, seen = Counter(group.name for group in groups), Counter[str]()
    named = []
    for group in groups:
        seen[group.name] += 1
        several = total[group.name] > 1
        named.append(replace(group, name=f"{group.name}#{seen[group.name]}") if several else group)
    return tuple(named)


def _layers(book: Book, batch: int, parameters: Iterable[str]) -> tuple[Layer, ...]:
    """The layers that cost something, in forward order; weights kept as buffers are not among them."""
    known = set(parameters)
    layers = []
    for path, use in sorted(book.uses.items(), key=lambda item: book.order(item[0])):
        if path in known:
            entries = int(np.prod([len(axis.labels) for axis in book.axes[path]]))
            layer = Layer(
                name=path.removesuffix(".weight"),
                kind=use.kind,
                weight=path,
                positions=round(use.macs / batch / entries),
                kernel=use.kernel,
                stride=use.stride,
                groups=use.groups,
                input_size=use.input_size,
            )
            layers.append(layer)
    return tuple(layers)


# -- what is left out -------------------------------------------------------------------------


def _unproved(failed: dict[str, str], found: int) -> str:
    shown = [f"{name} ({reason})" for name, reason in list(failed.items())[:3]]
    more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
    return f"{len(failed)} of {found} groups could not be proved and are left out: {'; '.join(shown)}{more}"


def _left_out(
    model: nn.Module, book: Book, space: SearchSpace, failed: dict[str, str], reasons: dict[str, str]
) -> tuple[LeftOut, ...]:
    """Groups that failed, layers whose own channels all stay whole, and modules that did not run."""
    cut: set[str] = set()
    unproved: dict[str, str] = {}
    for group in space.groups:
        made = [piece.path for piece in group.slices if piece.role != "in"]
        if group.name in failed:
            unproved |= dict.fromkeys(made, failed[group.name])
        else:
            cut.update(made)
    result = [LeftOut(name, reason) for name, reason in failed.items()]
    for layer in space.layers:
        if layer.weight not in cut and layer.name not in failed:
            reason = unproved.get(layer.weight) or reasons.get(layer.weight) or "its channels cannot be told apart"
            result.append(LeftOut(layer.name, reason))
    result += [LeftOut(name, "the example does not use it, so it stays whole") for name in _idle(model, book)]
    return tuple(result)


def _idle(model: nn.Module, book: Book) -> list[str]:
    """The outermost modules with parameters of which none was used."""
    unused = {id(parameter) for path, parameter in model.named_parameters() if book.order(path) < 0}
    names: list[str] = []
    for name, module in model.named_modules() if unused else ():
        own = [id(parameter) for parameter in module.parameters()]
        inside = any(name.startswith(f"{outer}.") for outer in names)
        if name and own and not inside and unused.issuperset(own):
            names.append(name)
    return names
