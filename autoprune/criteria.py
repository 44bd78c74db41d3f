"""Which channels stay: one score per unit of a group, high = keep.

A criterion is a function ``(group, model, statistics) -> Tensor`` with one entry per unit (a unit is a
channel; in a group that a grouped convolution takes part in, one channel of every convolution group).
Coupled layers add their scores.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.errors import UserError
from autoprune.gram import Gram
from autoprune.obs import Reader, eliminate
from autoprune.patches import WeightLayer
from autoprune.references import function
from autoprune.space import Group, Slice
from autoprune.statistics import Statistics, StatisticsNotice

Criterion = Callable[[Group, nn.Module, Statistics], Tensor]

RIDGE = 1e-3  # added to the diagonal of a Gram matrix, relative to its mean


def l1(group: Group, model: nn.Module, statistics: Statistics) -> Tensor:
    """Sum of absolute weights of the filters that make the channel (Li et al. 2017)."""
    return torch.stack([weights.abs().sum(1) for weights in _filters(group, model)]).sum(0)


def l2(group: Group, model: nn.Module, statistics: Statistics) -> Tensor:
    """Euclidean norm of the filters that make the channel."""
    return torch.stack([weights.square().sum(1) for weights in _filters(group, model)]).sum(0).sqrt()


def _filters(group: Group, model: nn.Module) -> Iterator[Tensor]:
    """Weights of the layers that produce the group's channels, as (units, entries)."""
    for piece in group.slices:
        if piece.role == "out":
            weight = model.get_parameter(piece.path).detach()
            if weight.dim() > 1:
                yield _entries(weight, piece)


def _entries(tensor: Tensor, piece: Slice) -> Tensor:
    """The entries of a tensor that vanish with each unit, (units, entries)."""
    index = torch.from_numpy(piece.positions.ravel()).to(tensor.device)
    return tensor.index_select(piece.axis, index).movedim(piece.axis, 0).reshape(len(piece.positions), -1)


def bn_scale(group: Group, model: nn.Module, statistics: Statistics) -> Tensor:
    """Absolute batch-norm scale of the channel (Network Slimming, Liu et al. 2017).

    A group without batch norm is refused.
    """
    scales = [
        _entries(model.get_parameter(piece.path).detach(), piece).abs().sum(1)
        for piece in group.slices
        if piece.tensor == "weight" and isinstance(model.get_submodule(piece.module), _BatchNorm)
    ]
    if not scales:
        raise UserError(f"criterion bn_scale: no batch norm scales the channels of {group.name}; use l1, taylor or obs")
    return torch.stack(scales).sum(0)


def taylor(group: Group, model: nn.Module, statistics: Statistics) -> Tensor:
    """First-order change of the loss when the channel is zeroed, per image (Molchanov et al. 2017)."""
    score = statistics.taylor[statistics.space.groups.index(group)]
    return _fallback(group, model, statistics) if score is None else torch.from_numpy(score)


def obs(group: Group, model: nn.Module, statistics: Statistics, ridge: float = RIDGE) -> Tensor:
    """Reconstruction error of the consumers' outputs when all other weights are re-fitted.

    Greedy backward elimination (see :mod:`autoprune.obs`): a unit's score is the error, as a share of the
    outputs' mean square, at which it leaves, so one pass ranks the units for every count. ``ridge`` is relative to
    the mean diagonal of the Gram matrix.
    """
    readers = [
        reader
        for piece in group.slices
        if piece.role == "in" and piece.path in statistics.grams
        for reader in _readers(piece, statistics.consumers[piece.path], statistics.grams[piece.path], ridge)
    ]
    return eliminate(readers, group.units) if readers else _fallback(group, model, statistics)


def _readers(piece: Slice, layer: WeightLayer, gram: Gram, ridge: float) -> Iterator[Reader]:
    """The layer's convolution groups, each with the columns that belong to the units, unit by unit."""
    weight = layer.weight.detach().cpu().double()
    taps = weight[0, 0].numel()
    columns = torch.from_numpy((piece.positions[:, :, None] * taps + np.arange(taps)).ravel())
    for second, part in zip(gram.second, weight.reshape(len(gram.second), -1, weight[0].numel()), strict=True):
        damped = second.clone()
        damped.diagonal().add_(ridge * float(second.diagonal().mean()) + 1e-12)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        energy = float((part @ second * part).sum())
        yield Reader(inverse[columns][:, columns], part.T[columns], energy)


def _fallback(group: Group, model: nn.Module, statistics: Statistics) -> Tensor:
    message = f"group {group.name}: nothing was observed of its consumers, l2 ranks it"
    warnings.warn(message, StatisticsNotice, stacklevel=3)
    return l2(group, model, statistics)


CRITERIA: Mapping[str, Criterion] = {"l1": l1, "l2": l2, "bn_scale": bn_scale, "taylor": taylor, "obs": obs}


def find(criterion: str | Criterion) -> Criterion:
    """A criterion by its name, by ``package.module:function``, or the function itself."""
    found: Criterion = function(criterion, "criterion", CRITERIA)
    return found


def scores(criterion: Criterion, model: nn.Module, statistics: Statistics) -> list[NDArray[np.float64]]:
    """The criterion applied to every group, checked: one finite score per unit."""
    result = []
    for group in statistics.space.groups:
        score = torch.as_tensor(criterion(group, model, statistics)).detach().cpu().double()
        if tuple(score.shape) != (group.units,):
            raise UserError(
                f"criterion {_name(criterion)} gave shape {tuple(score.shape)} for group {group.name}: "
                f"one score per unit, ({group.units},), is needed"
            )
        if not torch.isfinite(score).all():
            raise UserError(f"criterion {_name(criterion)} gave a score that is not finite for group {group.name}")
        result.append(score.numpy())
    return result


def _name(criterion: Criterion) -> str:
    function = criterion.func if isinstance(criterion, partial) else criterion
    return getattr(function, "__name__", None) or repr(criterion)
