"""Criteria that read weights: filter norms, the geometric median, batch-norm scales. They need no data."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.criteria.coupling import Aggregate, Normalise, combine
from autoprune.errors import UserError
from autoprune.space import Group, Slice
from autoprune.statistics import Statistics, StatisticsNotice

COLUMNS = 4096  # of a layer's filters that are held in double precision


def l1(
    group: Group,
    model: nn.Module,
    statistics: Statistics,
    *,
    aggregate: Aggregate = "sum",
    normalise: Normalise = "none",
) -> Tensor:
    """Sum of absolute weights of the filters that make the channel (Li et al. 2017)."""
    return combine([weights.abs().sum(1) for weights in _filters(group, model, "l1")], aggregate, normalise)


def l2(
    group: Group,
    model: nn.Module,
    statistics: Statistics,
    *,
    aggregate: Aggregate = "l2",
    normalise: Normalise = "none",
) -> Tensor:
    """Euclidean norm of the filters that make the channel; with the default ``aggregate``, of all of them together."""
    return combine([weights.norm(dim=1) for weights in _filters(group, model, "l2")], aggregate, normalise)


def fpgm(
    group: Group,
    model: nn.Module,
    statistics: Statistics,
    *,
    aggregate: Aggregate = "sum",
    normalise: Normalise = "none",
) -> Tensor:
    """Sum of Euclidean distances to all other filters of the layer (He et al. 2019).

    The filter nearest to all others, to their geometric median, is the one that they can best stand in for.
    """
    return combine([_distances(weights).sum(1) for weights in _filters(group, model, "fpgm")], aggregate, normalise)


def _distances(points: Tensor) -> Tensor:
    """Euclidean distances between rows, through inner products of centred rows in double precision."""
    inner = torch.zeros(len(points), len(points), dtype=torch.float64)
    for part in points.cpu().split(COLUMNS, 1):
        part = part.double()
        part = part - part.mean(0)
        inner.addmm_(part, part.T)
    squares = inner.diagonal()[:, None] + inner.diagonal() - 2 * inner
    return squares.fill_diagonal_(0).clamp_(min=0).sqrt()


def bn_scale(
    group: Group,
    model: nn.Module,
    statistics: Statistics,
    *,
    aggregate: Aggregate = "sum",
    normalise: Normalise = "none",
) -> Tensor:
    """Absolute batch-norm scale of the channel (Network Slimming, Liu et al. 2017).

    A group without batch norm is refused, and so is one whose batch norms have no scales.
    """
    scales = [
        _entries(model.get_parameter(piece.path).detach(), piece).abs().sum(1)
        for piece in group.slices
        if piece.tensor == "weight" and isinstance(model.get_submodule(piece.module), _BatchNorm)
    ]
    if not scales:
        raise UserError(f"criterion bn_scale: no batch norm scales the channels of {group.name}; use l1, taylor or obs")
    return combine(scales, aggregate, normalise)


def stand_in(group: Group, model: nn.Module, statistics: Statistics, reason: str) -> Tensor:
    """Scores by :func:`l2` where a criterion has nothing to say, with a notice."""
    warnings.warn(f"group {group.name}: {reason}, l2 ranks it", StatisticsNotice, stacklevel=3)
    return l2(group, model, statistics)


def _filters(group: Group, model: nn.Module, criterion: str) -> Iterator[Tensor]:
    """Weights of the layers that produce the group's channels, as (units, entries)."""
    pieces = [piece for piece in group.slices if piece.role == "out" and model.get_parameter(piece.path).dim() > 1]
    if not pieces:
        raise UserError(
            f"criterion {criterion}: no layer's filters make the channels of {group.name}; use taylor or obs"
        )
    for piece in pieces:
        entries = _entries(model.get_parameter(piece.path).detach(), piece)
        if not torch.isfinite(entries).all():
            raise UserError(f"{piece.path} holds nan or inf: criterion {criterion} cannot rank it; mend the weights")
        yield entries


def _entries(tensor: Tensor, piece: Slice) -> Tensor:
    """The entries of a tensor that vanish with each unit, (units, entries)."""
    index = torch.from_numpy(piece.positions.ravel()).to(tensor.device)
    return tensor.index_select(piece.axis, index).movedim(piece.axis, 0).reshape(len(piece.positions), -1)
