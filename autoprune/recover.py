"""Repair a pruned network without training it.

A recovery is a function ``(candidate, context) -> None`` that changes the candidate in place. Recoveries
compose: ``least_squares+recalibrate_bn`` runs one after the other.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.errors import UserError
from autoprune.forward import batch_size, call, to
from autoprune.slicing import Kept, selections
from autoprune.space import SearchSpace
from autoprune.statistics import Batches, Gram, Statistics, evaluating

RIDGE = 1e-3  # of the mean diagonal of the Gram matrix, toward the dense weights
BN_IMAGES = 1024


@dataclass(frozen=True, eq=False)
class Context:
    """What a recovery may use: the dense model, its statistics, calibration data, the kept units."""

    model: nn.Module
    space: SearchSpace
    kept: Kept
    statistics: Statistics
    batches: Batches


Recovery = Callable[[nn.Module, Context], None]


def none(candidate: nn.Module, context: Context) -> None:
    """Leave the candidate as slicing made it."""


def least_squares(candidate: nn.Module, context: Context, ridge: float = RIDGE) -> None:
    """Let every consumer's kept weights take over what its removed inputs contributed.

    With G the Gram matrix of the dense input, S the kept and R the removed columns,
    W_S <- W_S + (G_SS + r I)^-1 G_SR W_R, the minimiser of ||X W - X_S W_S'||^2 + r ||W_S' - W_S||^2 where
    r = ``ridge`` x mean diagonal of G_SS. Where the layer has a bias or feeds a batch norm, G is centred
    and that constant takes up the shift. Layers without a Gram matrix keep their weights.
    """
    dense = dict(context.model.named_parameters())
    chosen = selections(context.space, context.kept, context.space.shapes)
    tensors: dict[str, Tensor] = {**dict(candidate.named_parameters()), **dict(candidate.named_buffers())}
    with torch.no_grad():
        for path, gram in context.statistics.grams.items():
            if 1 not in chosen.get(path, {}):
                continue
            rows = chosen[path].get(0)
            weight, shift = _repaired(dense[path].detach(), gram, chosen[path][1], rows, ridge)
            tensors[path].copy_(weight)
            if gram.rest is not None:
                # a bias gains what the output lost; a running mean loses it
                sign = -1.0 if gram.rest.endswith("running_mean") else 1.0
                tensors[gram.rest].add_((sign * shift).to(tensors[gram.rest]))


def _repaired(weight: Tensor, gram: Gram, kept: Tensor, rows: Tensor | None, ridge: float) -> tuple[Tensor, Tensor]:
    """New weights for the kept inputs, and the constant the output lost on average, per output channel."""
    taps = weight[0, 0].numel()
    per_input = torch.arange(taps)
    stays = (kept[:, None] * taps + per_input).ravel()
    mask = torch.ones(weight[0].numel(), dtype=torch.bool)
    mask[stays] = False
    gone = mask.nonzero().ravel()
    groups = len(gram.matrix)
    parts = weight.double().cpu().reshape(groups, -1, weight[0].numel())
    result, shifts = [], []
    for second, mean, part in zip(gram.second, gram.mean, parts, strict=True):
        square = second[stays][:, stays]
        damping = ridge * float(square.diagonal().mean()) + 1e-12
        square = square + damping * torch.eye(len(stays), dtype=square.dtype)
        taken = torch.cholesky_solve(second[stays][:, gone] @ part[:, gone].T, torch.linalg.cholesky(square)).T
        result.append(part[:, stays] + taken)
        shifts.append(part[:, gone] @ mean[gone] - taken @ mean[stays])
    repaired = torch.cat(result).reshape(weight.shape[0], len(kept), *weight.shape[2:])
    shift = torch.cat(shifts)
    if rows is not None:
        repaired, shift = repaired[rows], shift[rows]
    return repaired.to(weight), shift


def recalibrate_bn(candidate: nn.Module, context: Context, images: int = BN_IMAGES) -> None:
    """Re-estimate batch-norm statistics on the calibration set (EagleEye, Li et al. 2020).

    Running statistics are forgotten and become those of the whole set: batches normalise themselves
    as in training, means and second moments are averaged by batch size, so unequal batches do not bias them.
    At most ``images`` samples are used. Flags and momenta are restored.
    """
    norms = [m for m in candidate.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return
    estimates = {norm: _Moments(norm) for norm in norms}
    momenta = [norm.momentum for norm in norms]
    device = next(candidate.parameters()).device
    with torch.no_grad(), evaluating(candidate):
        for norm in norms:
            norm.training, norm.momentum = True, 1.0  # running statistics become the batch's own
        handles = [norm.register_forward_hook(estimates[norm].add) for norm in norms]
        try:
            seen = 0
            for inputs, _ in context.batches:
                call(candidate, to(inputs, device))
                seen += batch_size(inputs)
                if seen >= images:
                    break
        finally:
            for handle, norm, momentum in zip(handles, norms, momenta, strict=True):
                handle.remove()
                norm.momentum = momentum
        for estimate in estimates.values():
            estimate.store()


class _Moments:
    """Mean and variance of everything one batch norm has seen, from the statistics of its batches."""

    def __init__(self, norm: _BatchNorm) -> None:
        assert norm.running_mean is not None
        self.norm = norm
        self.count = 0
        self.total = torch.zeros_like(norm.running_mean, dtype=torch.float64)
        self.square = torch.zeros_like(self.total)

    def add(self, norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert self.norm.running_mean is not None and self.norm.running_var is not None
        count = inputs[0].numel() // inputs[0].shape[1]
        mean = self.norm.running_mean.double()
        variance = self.norm.running_var.double() * (count - 1) / count  # undo Bessel's correction
        self.count += count
        self.total += count * mean
        self.square += count * (variance + mean**2)

    def store(self) -> None:
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        if self.count:
            mean = self.total / self.count
            variance = (self.square / self.count - mean**2).clamp_min(0)
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance * self.count / max(self.count - 1, 1))
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.zero_()


RECOVERIES: Mapping[str, Recovery] = {"none": none, "recalibrate_bn": recalibrate_bn, "least_squares": least_squares}


def compose(recoveries: Sequence[Recovery]) -> Recovery:
    """One recovery that runs several in order."""

    def composed(candidate: nn.Module, context: Context) -> None:
        for recovery in recoveries:
            recovery(candidate, context)

    return composed


def find(recovery: str | Recovery) -> Recovery:
    """A recovery by name, ``package.module:function``, or several joined by ``+``."""
    if callable(recovery):
        return recovery
    return compose([_find_one(name.strip()) for name in recovery.split("+")])


def _find_one(name: str) -> Recovery:
    if name in RECOVERIES:
        return RECOVERIES[name]
    if ":" in name:
        found = pkgutil.resolve_name(name)
        if callable(found):
            return found  # type: ignore[no-any-return]
    close = list(islice(get_close_matches(name, RECOVERIES), 1))
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(f"recovery {name!r} is unknown: {hint}use {', '.join(RECOVERIES)}, joined by +")
