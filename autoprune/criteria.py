"""Which channels stay: one score per unit of a group, high = keep.

A criterion is a function ``(group, model, statistics) -> Tensor`` with one entry per unit (a unit is a
channel; in a group that a grouped convolution takes part in, one channel of every convolution group).
Coupled layers add their scores.
"""

from __future__ import annotations

import math
import pkgutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import UserError
from autoprune.space import Group, Slice
from autoprune.statistics import Gram, Statistics, StatisticsNotice

Criterion = Callable[[Group, nn.Module, Statistics], Tensor]

RIDGE = 1e-3  # added to the diagonal of a Gram matrix, relative to its mean


def _weights(group: Group, model: nn.Module) -> Iterator[Tensor]:
    """Weights of the layers that produce the group's channels, as (units, entries)."""
    tensors = dict(model.named_parameters())
    for piece in group.slices:
        weight = tensors.get(piece.path)
        if piece.role == "out" and weight is not None and weight.dim() > 1:
            yield _rows(weight.detach(), piece)


def _rows(tensor: Tensor, piece: Slice) -> Tensor:
    """The entries of a tensor that vanish with each unit, (units, entries)."""
    index = torch.from_numpy(piece.positions.ravel()).to(tensor.device)
    return tensor.movedim(piece.axis, 0)[index].reshape(len(piece.positions), -1)


def l1(group: Group, model: nn.Module, statistics: Statistics) -> Tensor:
    """Sum of absolute weights of the filters that make the channel (Li et al. 2017)."""
    return torch.stack([rows.abs().sum(1) for rows in _weights(group, model)]).sum(0)


def l2(group: Group, model: nn.Module, statistics: Statistics) -> Tensor:
    """Euclidean norm of the filters that make the channel."""
    return torch.stack([rows.square().sum(1) for rows in _weights(group, model)]).sum(0).sqrt()


def bn_scale(group: Group, model: nn.Module, statistics: Statistics) -> Tensor:
    """Absolute batch-norm scale of the channel (Network Slimming, Liu et al. 2017).

    A group without batch norm is refused.
    """
    scores = []
    for piece in group.slices:
        module = model.get_submodule(piece.module)
        if piece.tensor == "weight" and isinstance(module, nn.modules.batchnorm._BatchNorm):
            scores.append(_rows(module.weight.detach(), piece).abs().sum(1))
    if not scores:
        raise UserError(f"criterion bn_scale: group {group.name} has no batch norm; use l1, taylor or obs")
    return torch.stack(scores).sum(0)


def taylor(group: Group, model: nn.Module, statistics: Statistics) -> Tensor:
    """First-order change of the loss when the channel is zeroed, per image (Molchanov et al. 2017)."""
    return torch.from_numpy(statistics.taylor[statistics.space.groups.index(group)])


def obs(group: Group, model: nn.Module, statistics: Statistics) -> Tensor:
    """Reconstruction error: greedy backward elimination of channels, all other weights re-fitted.

    Each step removes the unit whose loss changes the consumers' outputs least after least-squares
    repair, e_u = tr(W_uT (H_uu)^-1 W_u) with H the inverse of the Gram matrix (block Optimal Brain Surgeon;
    Hassibi and Stork 1993), then updates W and H. The score is that error as a share of the output's energy, made monotone,
    so one pass orders the units for every count. Falls back on l2 where no consumer has a Gram matrix.
    """
    blocks = [
        block
        for piece in group.slices
        if piece.role == "in" and piece.path in statistics.grams
        for block in _blocks(piece, statistics.consumers[piece.path], statistics.grams[piece.path])
    ]
    if not blocks:
        warnings.warn(f"{group.name}: no Gram matrix of a consumer, l2 ranks it", StatisticsNotice, stacklevel=2)
        return l2(group, model, statistics)
    return _eliminate(blocks, group.units)


def _blocks(piece: Slice, module: nn.Module, gram: Gram) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Per convolution group: inverse Gram and weights of the group's columns, and the output's energy.

    Columns are ordered unit by unit. Columns of other groups stay, so their part of the inverse never changes.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    taps = weight[0, 0].numel()
    columns = torch.from_numpy((piece.positions[:, :, None] * taps + np.arange(taps)).ravel())
    groups = len(gram.matrix)
    for second, part in zip(gram.second, weight.detach().double().cpu().reshape(groups, -1, weight[0].numel()), strict=True):
        ridge = RIDGE * float(second.diagonal().mean()) + 1e-12
        inverse = torch.linalg.inv(second + ridge * torch.eye(len(second), dtype=second.dtype))
        energy = float((part @ second * part).sum())
        yield inverse[columns][:, columns], part.T[columns], energy


def _eliminate(blocks: list[tuple[Tensor, Tensor, float]], units: int) -> Tensor:
    """Remove unit after unit; the running maximum of the error is the score."""
    energy = max(sum(block[2] for block in blocks), 1e-30)
    inverses = [h.clone() for h, _, _ in blocks]
    weights = [w.clone() for _, w, _ in blocks]
    sizes = [len(h) // units for h in inverses]
    alive = torch.ones(units, dtype=torch.bool)
    scores = torch.zeros(units, dtype=torch.float64)
    worst = 0.0
    for _ in range(units):
        errors = torch.zeros(units, dtype=torch.float64)
        for h, w, size in zip(inverses, weights, sizes, strict=True):
            square = h.reshape(units, size, units, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
            rows = w.reshape(units, size, -1)
            safe = torch.where(alive[:, None, None], square, torch.eye(size, dtype=h.dtype))
            errors += (torch.linalg.solve(safe, rows) * rows).sum((1, 2))
        errors[~alive] = math.inf
        unit = int(errors.argmin())
        worst = max(worst * (1 + 1e-12), float(errors[unit]))
        scores[unit] = worst / energy
        alive[unit] = False
        for h, w, size in zip(inverses, weights, sizes, strict=True):
            gone = slice(unit * size, (unit + 1) * size)
            update = torch.linalg.solve(h[gone, gone], torch.cat([h[gone], w[gone]], 1))
            column = h[:, gone].clone()
            h -= column @ update[:, : len(h)]
            w -= column @ update[:, len(h) :]
    return scores


CRITERIA: Mapping[str, Criterion] = {"l1": l1, "l2": l2, "bn_scale": bn_scale, "taylor": taylor, "obs": obs}


def find(criterion: str | Criterion) -> Criterion:
    """A criterion by built-in name or ``package.module:function``; a function is returned as it is."""
    if callable(criterion):
        return criterion
    if criterion in CRITERIA:
        return CRITERIA[criterion]
    if ":" in criterion:
        found = pkgutil.resolve_name(criterion)
        if callable(found):
            return found  # type: ignore[no-any-return]
    close = get_close_matches(criterion, CRITERIA)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(f"criterion {criterion!r} is unknown: {hint}use {', '.join(CRITERIA)} or package.module:function")


def scores(criterion: Criterion, model: nn.Module, statistics: Statistics) -> list[np.ndarray]:
    """The criterion applied to every group, checked: one finite score per unit."""
    result = []
    for group in statistics.space.groups:
        score = torch.as_tensor(criterion(group, model, statistics)).detach().double().cpu()
        if tuple(score.shape) != (group.units,):
            raise UserError(
                f"criterion gave shape {tuple(score.shape)} for group {group.name}: one score per unit, ({group.units},), is needed"
            )
        if not torch.isfinite(score).all():
            raise UserError(f"criterion gave a score that is not finite for group {group.name}")
        result.append(score.numpy())
    return result
