"""Make the pruned network of a scheme: index-select on every slice, nothing else.

No tracer, no gradient and no copy of a weight that is then thrown away: each tensor of the candidate is
selected straight from the dense one, and modules are cloned shallowly around the new tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune.errors import UserError
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

Kept = Sequence[NDArray[np.int64]]  # per group: the units that stay, ascending


def choose(space: SearchSpace, scheme: Scheme, scores: Sequence[NDArray[np.float64]]) -> list[NDArray[np.int64]]:
    """The units that stay in every group: the scheme's own indices, else the best ``scores``.

    Ties go to the lower unit, so equal scores keep a stable prefix.
    """
    space.check(scheme)
    if scheme.indices is not None:
        return [np.asarray(chosen, dtype=np.int64) for chosen in scheme.indices]
    kept = []
    for group, count, score in zip(space.groups, scheme.kept, scores, strict=True):
        order = np.argsort(-np.asarray(score), kind="stable")
        kept.append(np.sort(order[: count // group.unit]).astype(np.int64))
    return kept


def selections(
    space: SearchSpace, kept: Kept, shapes: Mapping[str, Sequence[int]]
) -> dict[str, dict[int, Tensor]]:
    """Per tensor and axis: the entries that stay, ascending, for every axis that loses something.

    ``shapes`` are the dense shapes by dotted name of the tensors that are asked about.
    """
    lost: dict[tuple[str, int], list[NDArray[np.int64]]] = {}
    for group, units in zip(space.groups, kept, strict=True):
        if len(units) == group.units:
            continue
        gone = np.ones(group.units, dtype=bool)
        gone[units] = False
        for piece in group.slices:
            if piece.path in shapes:
                lost.setdefault((piece.path, piece.axis), []).append(piece.positions[gone].ravel())
    result: dict[str, dict[int, Tensor]] = {}
    for (path, axis), positions in lost.items():
        stays = np.ones(shapes[path][axis], dtype=bool)
        stays[np.concatenate(positions)] = False
        result.setdefault(path, {})[axis] = torch.from_numpy(np.flatnonzero(stays))
    return result


def prune(model: nn.Module, space: SearchSpace, kept: Kept) -> nn.Module:
    """A new network that keeps the given units; ``model`` is left as it is.

    Tensors that lose nothing are copied too, so that tuning the candidate never touches the model.
    """
    dense = named_tensors(model)
    chosen = selections(space, kept, {path: tensor.shape for path, tensor in dense})
    tensors: dict[int, Tensor] = {}
    for path, tensor in dense:
        tensors[id(tensor)] = _select(tensor, chosen.get(path, {}))
    candidate = _clone(model, tensors)
    for name, module in candidate.named_modules():
        if any(_path(name, key) in chosen for key in (*module._parameters, *module._buffers)):
            resize_attributes(module)
    return candidate


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer once, by the first name it goes under."""
    return [*model.named_parameters(), *model.named_buffers()]


def _path(module: str, tensor: str) -> str:
    return f"{module}.{tensor}" if module else tensor


def _select(tensor: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    value = tensor.detach()
    for axis, stays in axes.items():
        value = value.index_select(axis, stays.to(value.device))
    if not axes:
        value = value.clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value, requires_grad=tensor.requires_grad)
    return value


def _clone(model: nn.Module, tensors: dict[int, Tensor]) -> nn.Module:
    """Copy the module tree around new tensors."""
    memo: dict[int, Any] = dict(tensors)
    return copy.deepcopy(model, memo)


def resize_attributes(module: nn.Module) -> None:
    """Make a module's own record of its sizes (``in_channels``, ``groups``, …) agree with its tensors."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd):
        if module.groups == module.in_channels:  # depthwise, or a bank of filters per channel
            module.groups = weight.shape[0] * module.in_channels // module.out_channels
        module.in_channels, module.out_channels = weight.shape[1] * module.groups, weight.shape[0]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = weight.shape[1]


def check_removed(model: nn.Module, space: SearchSpace, scheme: Scheme) -> None:
    """Refuse a candidate whose layers are not exactly as narrow as the scheme asks."""
    shapes = {path: tensor.shape for path, tensor in named_tensors(model)}
    for group, count in zip(space.groups, scheme.kept, strict=True):
        piece = group.slices[0]
        expected = space.shapes[piece.path][piece.axis] - (group.width - count)
        others = [g for g in space.groups if g is not group and any(s.path == piece.path and s.axis == piece.axis for s in g.slices)]
        if not others and shapes[piece.path][piece.axis] != expected:
            raise UserError(f"group {group.name}: asked to keep {count} channels, the network has {shapes[piece.path][piece.axis]}")
