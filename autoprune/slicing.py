"""Make the pruned network of a scheme: index-select on every slice, nothing else.

No tracer, no gradient and no copy of a weight that is then thrown away: each tensor of the candidate is
selected straight from the dense one, and modules are cloned around the new tensors.
"""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from autoprune.errors import UserError
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

Kept = Sequence[NDArray[Any]]  # per group: the units that stay, ascending; in a space of weights their mask


def choose(space: SearchSpace, scheme: Scheme, scores: Sequence[NDArray[np.float64]]) -> list[NDArray[np.int64]]:
    """The units that stay in every group: the scheme's own indices, else the best ``scores``.

    Ties go to the lower unit, so equal scores keep a stable prefix.
    """
    space.check(scheme)
    return best(space, scheme, order(space, scores) if scheme.indices is None else ())


def order(space: SearchSpace, scores: Sequence[NDArray[np.float64]]) -> list[NDArray[np.int64]]:
    """The units of every group, the best first."""
    return [np.argsort(-np.asarray(score), kind="stable") for score in scores]


def best(space: SearchSpace, scheme: Scheme, ranked: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """The units that stay in every group: the scheme's own indices, else the first that are ranked."""
    if scheme.indices is not None:
        return [np.asarray(chosen, dtype=np.int64) for chosen in scheme.indices]
    return [
        np.sort(first[: count // group.unit]).astype(np.int64)
        for group, count, first in zip(space.groups, scheme.kept, ranked, strict=True)
    ]


def everything(space: SearchSpace) -> list[NDArray[np.int64]]:
    """The units of every group when none is removed."""
    return [np.arange(group.units) for group in space.groups]


def selections(space: SearchSpace, kept: Kept, shapes: Mapping[str, Sequence[int]]) -> dict[str, dict[int, Tensor]]:
    """Per tensor and axis: the entries that stay, ascending, for every axis that loses something.

    ``shapes`` are the dense shapes by dotted name of the tensors that are asked about.
    """
    stays: dict[tuple[str, int], NDArray[np.bool_]] = {}
    for group, units in zip(space.groups, kept, strict=True):
        if len(units) == group.units:
            continue
        gone = np.ones(group.units, dtype=bool)
        gone[units] = False
        for piece in group.slices:
            if piece.path in shapes:
                place = piece.path, piece.axis
                if place not in stays:
                    stays[place] = np.ones(shapes[piece.path][piece.axis], dtype=bool)
                stays[place][piece.positions[gone].ravel()] = False
    result: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for (path, axis), mask in stays.items():
        result[path][axis] = torch.from_numpy(np.flatnonzero(mask))
    return dict(result)


def prune(model: nn.Module, space: SearchSpace, kept: Kept) -> nn.Module:
    """A new network that keeps the given units; ``model`` is left as it is.

    Tensors that lose nothing are copied too, so that tuning the candidate never touches the model.
    """
    dense = named_tensors(model)
    chosen = selections(space, kept, {path: tensor.shape for path, tensor in dense})
    return with_tensors(model, {path: _select(tensor, chosen.get(path, {})) for path, tensor in dense})


def with_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of the network with other tensors, one for every name of :func:`named_tensors`.

    Tensors that several modules share stay shared, and modules know their new sizes.
    """
    memo: dict[int, Any] = {}  # what deepcopy is to put in the place of each tensor
    resized: set[int] = set()
    for path, tensor in named_tensors(model):
        memo[id(tensor)] = tensors[path]
        if tensors[path].shape != tensor.shape:
            resized.add(id(tensors[path]))
    for module in model.modules():
        for value in vars(module).values():
            if type(value) in (dict, OrderedDict) and not value:
                memo[id(value)] = type(value)()  # the many empty tables of hooks: half of deepcopy's time
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        if any(id(tensor) in resized for tensor in (*module._parameters.values(), *module._buffers.values())):
            resize_attributes(module)
    return copied


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer once, by the first name it goes under."""
    return [*model.named_parameters(), *model.named_buffers()]


def _select(tensor: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    value = tensor.detach()
    for axis, stays in axes.items():
        value = value.index_select(axis, stays.to(value.device))
    if not axes:
        value = value.clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value, requires_grad=tensor.requires_grad)
    return value


def resize_attributes(module: nn.Module) -> None:
    """Make a module's own record of its sizes (``in_channels``, ``groups``, …) agree with its tensors."""
    weight: object = getattr(module, "weight", None)
    if weight is None and isinstance(module, _NormBase):
        weight = module.running_mean  # there is no affine part
    if isinstance(module, nn.RNNBase):
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]
    if not isinstance(weight, Tensor):
        return
    if isinstance(module, _ConvTransposeNd):
        if module.groups == module.in_channels > 1:  # depthwise
            module.groups = weight.shape[0]
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, _ConvNd):
        if module.groups == module.in_channels > 1:  # depthwise, or a bank of filters per channel
            module.groups = weight.shape[0] * module.in_channels // module.out_channels
        module.in_channels, module.out_channels = weight.shape[1] * module.groups, weight.shape[0]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, _NormBase):
        module.num_features = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = weight.shape[1]


def check_removed(model: nn.Module, space: SearchSpace, scheme: Scheme) -> None:
    """Refuse a candidate whose tensors are not exactly as narrow as the scheme asks."""
    shapes = {path: tensor.shape for path, tensor in named_tensors(model)}
    removed: dict[tuple[str, int], int] = defaultdict(int)
    for group, count in zip(space.groups, scheme.kept, strict=True):
        for piece in group.slices:
            removed[piece.path, piece.axis] += (group.units - count // group.unit) * piece.positions.shape[1]
    for (path, axis), entries in removed.items():
        if path not in space.shapes:  # a buffer: the space knows the shapes of parameters
            continue
        asked = space.shapes[path][axis] - entries
        found = shapes[path][axis] if path in shapes else 0
        if found != asked:
            raise UserError(
                f"axis {axis} of {path} has {found} entries where the scheme asks for {asked}: "
                "the search space does not fit this network, trace it again"
            )
