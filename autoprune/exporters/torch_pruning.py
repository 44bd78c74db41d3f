"""Torch-Pruning: removed ratios per layer, or a history that it replays to the very same channels.

Counts only, the channels chosen by Torch-Pruning's own importance. Everything that is not named must be told to
stay, and the two dictionaries must be fresh, because their defaults are shared by all pruners of a process:

    pruner = tp.pruner.BasePruner(
        model, (example,), tp.importance.MagnitudeImportance(),
        pruning_ratio=0.0, pruning_ratio_dict=ratios(scheme, space, model),
        in_channel_groups={}, out_channel_groups={},
    )
    pruner.step()

Exactly the channels of a scheme with indices:

    graph = tp.DependencyGraph().build_dependency(model, (example,))
    graph.load_pruning_history(history(scheme, space))

What Torch-Pruning 1.6.1 does, found by trying it:

- It keeps ``int(units * (1 - ratio))`` of a group's units, a unit being one channel of every convolution group. A
  ratio of 1 - kept/width would often end one short, so ratios point at the middle of the bin: 1 - (kept + 0.5)/width.
- It traces inference with autograd. A frozen layer with nothing trainable before it is not seen, without an error;
  neither are auxiliary heads.
- A ratio belongs to whole layers. Where our groups split the output channels of one layer (a sum with a
  concatenation, say), it knows one group, so only a history can be handed over.
- A history is replayed entry by entry, each starting from one layer: indices count what earlier entries have left of
  it, and layers that hang together only because a user tied them need ratios instead.
- Grouped convolutions with one channel per group on one side only (6 inputs, 6 groups, 12 outputs) come out broken,
  and modules that share a parameter are cut in one place only.
- An example that is a bare tensor is first tried as ``model(*example)``, one image as one argument: give a tuple.
- A layer that reads (places, channels) flattened is cut as if it had read (channels, places).
- On ShuffleNet its tracer divides by zero, and listing the groups of a Swin transformer takes minutes (a pruner lists
  them, a history does not).

The scheme, the space and the model show most of this, and what would go wrong is refused. The rest shows only when
Torch-Pruning traces the network: :func:`check_ratios` and :func:`check_history` find it by trying on a copy. Both were
tried with ResNet, ResNeXt, RegNet, MobileNet, EfficientNet, MNASNet, SqueezeNet, DenseNet, VGG, ConvNeXt and ViT.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autoprune import slicing
from autoprune.errors import UserError
from autoprune.exporters.bins import remaining
from autoprune.exporters.comparison import refuse_other
from autoprune.forward import Example
from autoprune.paths import existing
from autoprune.scheme import Scheme
from autoprune.space import Group, Layer, SearchSpace, Slice

Entry = list[Any]
"""``[root module's name, True for its output channels, indices to remove]``."""


def ratios(scheme: Scheme, space: SearchSpace, model: nn.Module) -> dict[nn.Module, float]:
    """The ``pruning_ratio_dict`` of a scheme: removed ratio of every layer whose output channels are cut.

    The layers of one group all have the same ratio; Torch-Pruning takes it from whichever it meets first.
    """
    modules = dict(model.named_modules())
    return {modules[name]: ratio for name, ratio in ratios_by_name(scheme, space, model).items()}


def ratios_by_name(scheme: Scheme, space: SearchSpace, model: nn.Module | None = None) -> dict[str, float]:
    """:func:`ratios` by the layers' names, for a file; look the names up in ``dict(model.named_modules())``."""
    cut = _cut(scheme, space)
    for _, group in cut:
        _refuse_unfit(group, space, model)
        _refuse_split(group, space)
    return {
        piece.module: 1 - remaining(group.units, scheme.kept[position] // group.unit)
        for position, group in cut
        for piece in group.slices
        if piece.role == "out"
    }


def history(
    scheme: Scheme,
    space: SearchSpace,
    model: nn.Module | None = None,
    *,
    kept: Sequence[Sequence[int] | NDArray[np.int64]] | None = None,
) -> list[Entry]:
    """The history that ``DependencyGraph.load_pruning_history`` replays; ``kept`` are units, if the scheme has none."""
    if kept is not None:
        scheme = Scheme(scheme.kept, scheme.granularity, tuple(tuple(int(u) for u in units) for units in kept))
    cut = _cut(scheme, space)
    if scheme.indices is None:
        raise UserError(
            "the scheme says how many channels stay, not which: export a scheme with kept indices "
            "(`autoprune apply` writes one), or hand over the ratios"
        )
    lost: dict[tuple[str, int], set[int]] = defaultdict(set)
    entries: list[Entry] = []
    for position, group in cut:
        _refuse_unfit(group, space, model)
        gone = np.setdiff1d(np.arange(group.units), scheme.indices[position])
        root = group.slices[0]
        earlier = np.sort(np.fromiter(lost[root.path, root.axis], dtype=np.int64))
        channels = np.array(group.channels(gone))
        entries.append([root.module, True, (channels - np.searchsorted(earlier, channels)).tolist()])
        for piece in group.slices:
            lost[piece.path, piece.axis].update(piece.positions[gone].ravel().tolist())
    return entries


def read_history(entries: Sequence[Any], space: SearchSpace) -> Scheme:
    """The scheme of a history, of :func:`history` or of a pruner's own ``pruning_history()``, with its kept indices.

    Entries count what earlier ones have left. An entry may start from any layer of a group.
    """
    left: dict[tuple[str, int], list[int]] = {}
    gone: list[set[int]] = [set() for _ in space.groups]
    for number, entry in enumerate(entries):
        if not (isinstance(entry, list | tuple) and len(entry) == 3 and isinstance(entry[2], list | tuple)):
            raise UserError(f"entry {number} of the history is not [layer, is_out_channel, indices]")
        for position, units in _lost(number, list(entry), left, space):
            gone[position] |= units
            for piece in space.groups[position].slices:
                removed = set(piece.positions[sorted(units)].ravel().tolist())
                left[piece.path, piece.axis] = [at for at in _left(left, piece, space) if at not in removed]
    kept = [
        tuple(unit for unit in range(group.units) if unit not in units)
        for group, units in zip(space.groups, gone, strict=True)
    ]
    counts = tuple(len(units) * group.unit for units, group in zip(kept, space.groups, strict=True))
    scheme = Scheme(counts, space.granularity, tuple(kept))
    space.check(scheme)
    return scheme


def _lost(
    number: int, entry: Entry, left: dict[tuple[str, int], list[int]], space: SearchSpace
) -> list[tuple[int, set[int]]]:
    """The units that an entry removes, by the position of their group."""
    name, out, indices = entry
    pieces = [
        (position, piece)
        for position, group in enumerate(space.groups)
        for piece in group.slices
        if piece.module == name and piece.path in space.shapes and (piece.role == "in") != bool(out)
    ]
    if not pieces:
        raise UserError(f"entry {number} of the history prunes {name!r}, which no group of this network has")
    first = pieces[0][1]
    remaining = _left(left, first, space)
    beyond = [index for index in indices if not 0 <= int(index) < len(remaining)]
    if beyond:
        raise UserError(
            f"entry {number} of the history removes channel {beyond[0]} of {name}, which has {len(remaining)} left"
        )
    chosen = {remaining[int(index)] for index in indices}
    found = []
    for position, piece in pieces:
        if (piece.path, piece.axis) != (first.path, first.axis):
            continue
        rows = [set(row.tolist()) for row in piece.positions]
        units = {unit for unit, row in enumerate(rows) if row & chosen}
        if any(not rows[unit] <= chosen for unit in units):
            raise UserError(f"entry {number} of the history removes part of the channels of {name} that leave together")
        found.append((position, units))
    return found


def _left(left: dict[tuple[str, int], list[int]], piece: Slice, space: SearchSpace) -> list[int]:
    """The entries of a piece's axis that earlier entries have left; of a buffer, those that the group knows."""
    size = space.shapes[piece.path][piece.axis] if piece.path in space.shapes else int(piece.positions.max()) + 1
    return left.setdefault((piece.path, piece.axis), list(range(size)))


def read_file(path: str | Path, space: SearchSpace) -> Scheme:
    """:func:`read_history` of a JSON file."""
    try:
        entries = json.loads(existing(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): a history of Torch-Pruning is expected") from None
    return read_history(entries, space)


def check_ratios(scheme: Scheme, space: SearchSpace, model: nn.Module, example: Example) -> None:
    """Let the installed Torch-Pruning prune a copy of ``model`` by ratios; refuse if a width is not the scheme's."""
    import torch_pruning as tp

    candidate = copy.deepcopy(model)
    wanted = ratios(scheme, space, candidate)

    def prune() -> None:
        tp.pruner.BasePruner(
            candidate,
            _inputs(example),
            lambda group: torch.arange(len(group[0].idxs), dtype=torch.float32),  # any importance: widths are compared
            pruning_ratio=0.0,
            pruning_ratio_dict=wanted,
            in_channel_groups={},
            out_channel_groups={},
        ).step()

    _try(prune)
    kept = [np.arange(count // group.unit) for group, count in zip(space.groups, scheme.kept, strict=True)]
    refuse_other(slicing.prune(model, space, kept), candidate, space, _tool(), values=False)


def check_history(scheme: Scheme, space: SearchSpace, model: nn.Module, example: Example) -> None:
    """Let the installed Torch-Pruning replay the history on a copy of ``model``; refuse if any tensor differs."""
    import torch_pruning as tp

    candidate = copy.deepcopy(model)
    entries = history(scheme, space, candidate)
    _try(lambda: tp.DependencyGraph().build_dependency(candidate, _inputs(example)).load_pruning_history(entries))
    kept = [np.asarray(units, dtype=np.int64) for units in scheme.indices or ()]
    refuse_other(slicing.prune(model, space, kept), candidate, space, _tool(), values=True)


def _cut(scheme: Scheme, space: SearchSpace) -> list[tuple[int, Group]]:
    """The groups that lose something, and their positions."""
    if scheme.granularity != "channel":
        raise UserError(f"Torch-Pruning removes whole channels, the scheme is of granularity {scheme.granularity!r}")
    space.check(scheme)
    return [(position, group) for position, group in enumerate(space.groups) if scheme.kept[position] < group.width]


def _refuse_unfit(group: Group, space: SearchSpace, model: nn.Module | None) -> None:
    """What neither ratios nor a history can hand over."""
    layers = {layer.weight: layer for layer in space.layers}
    for piece in group.slices:
        if piece.role == "out" and piece.tensor != "weight":
            whose = _whose(group)
            raise UserError(f"{whose} are made by {piece.path}, a parameter that Torch-Pruning cannot name{REMEDY}")
        layer, shape = layers.get(piece.path), space.shapes.get(piece.path, ())
        if layer is not None and _half_depthwise(layer, shape):
            raise UserError(f"{_whose(group)} meet {layer.name}, which is depthwise on one side only{BROKEN}")
        embeds = piece.role == "out" and piece.axis == 1 and len(shape) == 2
        if layer is None and piece.role != "through" and not embeds:
            raise UserError(
                f"{_whose(group)} meet {piece.module}, which inference does not use, so Torch-Pruning misses it{REMEDY}"
            )
    if model is not None:
        _refuse_model(group, space, model)


def _refuse_model(group: Group, space: SearchSpace, model: nn.Module) -> None:
    parameters = dict(model.named_parameters())
    users: dict[int, set[int]] = defaultdict(set)
    for module in model.modules():
        for parameter in module._parameters.values():
            users[id(parameter)].add(id(module))
    for piece in group.slices:
        if piece.path not in space.shapes:  # a buffer
            continue
        parameter = parameters.get(piece.path)
        if parameter is None or tuple(parameter.shape) != tuple(space.shapes[piece.path]):
            found = "missing" if parameter is None else f"of shape {tuple(parameter.shape)}"
            raise UserError(f"the model is not the search space's: {piece.path} is {found}; give the dense network")
        if len(users[id(parameter)]) > 1:
            raise UserError(f"{_whose(group)} meet {piece.path}, a parameter shared by several modules{BROKEN}")
        if piece.role == "out" and not parameter.requires_grad:
            raise UserError(
                f"{_whose(group)} are made by the frozen layer {piece.module}, which Torch-Pruning may overlook: "
                "call model.requires_grad_(True) before the hand-off"
            )


def _refuse_split(group: Group, space: SearchSpace) -> None:
    """Ratios belong to whole layers, and to the units that Torch-Pruning takes for the smallest."""
    layers = {layer.weight: layer for layer in space.layers}
    largest = 1
    for piece in group.slices:
        layer = layers.get(piece.path)
        if layer is None:
            continue
        width = space.shapes[piece.path][piece.axis]
        if piece.role != "in" and piece.positions.size != width:
            raise UserError(
                f"{_whose(group)} are {piece.positions.size} of the {width} channels of {piece.module}, "
                "and Torch-Pruning has one ratio per layer: hand over the history"
            )
        if layer.groups > 1 and layer.groups != space.shapes[piece.path][0]:
            largest = max(largest, layer.groups)
    if group.unit != largest:
        raise UserError(
            f"{_whose(group)} leave {group.unit} at a time, with ratios Torch-Pruning takes {largest}: "
            "hand over the history"
        )


def _half_depthwise(layer: Layer, shape: Sequence[int]) -> bool:
    """Whether groups have one input but several outputs, or the reverse: Torch-Pruning mistakes the kind of layer."""
    return layer.groups > 1 and (shape[0] == layer.groups) != (shape[1] == 1)


REMEDY = "; keep this group whole, or hand over the pruned network"
BROKEN = f", which Torch-Pruning cuts wrong{REMEDY}"


def _whose(group: Group) -> str:
    return f"the channels of group {group.name}"


def _tool() -> str:
    return f"Torch-Pruning {version('torch-pruning')}"


def _inputs(example: Example) -> Example:
    """The example so that Torch-Pruning does not take a batch for a list of arguments."""
    return (example,) if isinstance(example, torch.Tensor) else example


def _try(prune: Any) -> None:
    """Run Torch-Pruning; whatever it raises becomes one line."""
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its notices about parameters it found by itself
        try:
            prune()
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            raise UserError(
                f"{_tool()} cannot prune this network ({type(error).__name__}: {reason}); hand over the pruned network"
            ) from error
