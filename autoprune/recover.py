"""Repair a pruned network without training it.

A recovery is a function ``(candidate, context) -> None`` that changes the candidate in place. Recoveries
compose: ``least_squares+recalibrate_bn`` runs one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune import nested, settings
from autoprune.errors import UserError
from autoprune.forward import batch_size, call, evaluating, leading, to
from autoprune.gram import Gram
from autoprune.precision import FULL, passes
from autoprune.references import function
from autoprune.scheme import NOUNS, Granularity
from autoprune.slicing import Kept, named_tensors, selections
from autoprune.space import SearchSpace
from autoprune.statistics import Batches, Statistics

RIDGE = 1e-3  # of the mean diagonal of the Gram matrix, toward the dense weights
BN_IMAGES = 1024


@dataclass(frozen=True, eq=False)
class Context:
    """What a recovery may use: the dense model, its statistics, calibration data, the kept units.

    In a space of single weights ``kept`` are masks, which :func:`autoprune.masking.by_name` gives by the names of their
    tensors, and the statistics' Gram matrices are those of every such tensor.

    ``ranked`` are the units of every group in the order in which they stay, if one order holds for all candidates.
    ``share`` is the part of the images it would usually look at that it may look at. ``remembered`` is what
    recoveries found out about the model and the data: it outlives the candidate, and all candidates of an evaluator
    have the same. ``precision`` is what plain forward passes of the candidate may compute in.
    """

    model: nn.Module
    space: SearchSpace
    kept: Kept
    statistics: Statistics
    batches: Batches
    share: float = 1.0
    remembered: dict[Any, Any] = field(default_factory=dict)
    ranked: Sequence[NDArray[np.int64]] = ()
    precision: str = FULL


Recovery = Callable[[nn.Module, Context], None]


def none(candidate: nn.Module, context: Context) -> None:
    """Leave the candidate as slicing made it."""


def least_squares(candidate: nn.Module, context: Context, ridge: float = RIDGE) -> None:
    """Let every consumer's kept weights take over what its removed inputs contributed.

    With G the Gram matrix of the dense input, S the kept and R the removed columns,
    W_S <- W_S + (G_SS + r I)^-1 G_SR W_R, the minimiser of |X W - X_S W_S'|^2 + r |W_S' - W_S|^2 where
    r = ``ridge`` x mean diagonal of G. Where the layer has a bias or feeds a batch norm, G is centred
    and that constant takes up the shift. Layers without a Gram matrix keep their weights. Where the candidates of an
    evaluator remove a layer's channels in one order, what they have in common is computed once
    (:mod:`autoprune.nested`).
    """
    chosen = selections(context.space, context.kept, context.space.shapes)
    tensors = dict(named_tensors(candidate))
    for path, gram in context.statistics.grams.items():
        axes = chosen.get(path, {})
        if 1 not in axes:
            continue
        known = _in_order(context, path, gram, ridge)
        if known is not None and known.knows(axes[1].numpy()):
            weight, lost = known.repaired(len(axes[1]), axes.get(0, slice(None)))
        else:
            weight, lost = _solved(context.model.get_parameter(path).detach(), gram, axes[1], ridge)
            if 0 in axes:
                weight, lost = weight[axes[0]], lost[axes[0]]
        with torch.no_grad():
            tensors[path].copy_(weight.reshape(tensors[path].shape))
        gram.absorb(lost, tensors)


def _in_order(context: Context, path: str, gram: Gram, ridge: float) -> nested.Nested | None:
    """What the repairs of a dense layer have in common, if its inputs leave in one order."""
    if not len(context.ranked) or len(gram.mean) > 1 or context.model is not context.statistics.model:
        return None
    weight = context.model.get_parameter(path).detach()
    key = "least_squares", path, ridge
    if key not in context.remembered:
        order = nested.orders(context.space, context.ranked, {path: weight.shape}).get(path)
        context.remembered[key] = None if order is None else nested.Nested(weight, gram, order, ridge)
    known: nested.Nested | None = context.remembered[key]
    return None if known is None else known.to(weight.device)


def _solved(weight: Tensor, gram: Gram, kept: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """New weights for the kept inputs, and what each output channel lost on average."""
    taps = weight[0, 0].numel()
    columns = np.arange(weight[0].numel()).reshape(-1, taps)
    stays = torch.from_numpy(columns[kept.numpy()].ravel())
    gone = torch.from_numpy(np.delete(columns, kept.numpy(), axis=0).ravel())
    parts, lost = [], []
    dense = weight.cpu().double().reshape(len(gram.mean), -1, weight[0].numel())
    for second, mean, part in zip(gram.second, gram.mean, dense, strict=True):
        read = second[stays]
        square = read[:, stays]
        square.diagonal().add_(nested.damping(second, ridge))
        taken = torch.cholesky_solve(read[:, gone] @ part[:, gone].T, torch.linalg.cholesky(square)).T
        parts.append(part[:, stays] + taken)
        lost.append(part[:, gone] @ mean[gone] - taken @ mean[stays])
    return torch.cat(parts), torch.cat(lost)


def recalibrate_bn(candidate: nn.Module, context: Context, images: int = BN_IMAGES) -> None:
    """Re-estimate batch-norm statistics on the calibration set (EagleEye, Li et al. 2020).

    Running statistics are forgotten and become those of the whole set: batches normalise themselves
    as in training, and their moments are pooled by size, so unequal batches do not bias them. At most
    ``images`` samples are used, in whole batches, but at least one batch; a batch of one sample, which may have
    no variance, only if there is no other. Flags and momenta are restored.
    """
    reestimate(candidate, leading(first(context.batches, images), context.share), context.precision)


def reestimate(candidate: nn.Module, batches: Iterable[tuple[Any, Any]], precision: str = FULL) -> None:
    """The batch-norm statistics of all these (input, label) batches, see :func:`recalibrate_bn`."""
    norms = [m for m in candidate.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        return
    device = next(candidate.parameters()).device
    momenta = [norm.momentum for norm in norms]
    estimates = [_Moments() for _ in norms]
    with torch.no_grad(), passes(precision, device), evaluating(candidate), ExitStack() as hooks:
        for norm, estimate in zip(norms, estimates, strict=True):
            norm.reset_running_stats()
            norm.training, norm.momentum = True, 1.0  # running statistics become the batch's own
            hooks.enter_context(norm.register_forward_hook(estimate.add))
        try:
            for inputs, _ in batches:
                call(candidate, to(inputs, device))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
        for norm, estimate in zip(norms, estimates, strict=True):
            estimate.store(norm)


def first(batches: Batches, images: int) -> Iterator[tuple[Any, Any]]:
    """The leading batches that hold at most ``images`` samples together, but of one at least."""
    seen = largest = 0
    for inputs, labels in batches:
        size = batch_size(inputs)
        if seen and seen + size > images:
            return
        if size == 1 < largest:  # a set's last batch: one sample may have no variance
            continue
        seen, largest = seen + size, max(size, largest)
        yield inputs, labels


class _Moments:
    """Mean and scatter of everything one batch norm has seen, pooled from its batches (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | float = 0.0
        self.scatter: Tensor | float = 0.0

    def add(self, norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None
        count = inputs[0].numel() // inputs[0].shape[1]
        total = self.count + count
        step = norm.running_mean.double() - self.mean
        scatter = norm.running_var.double() * (count - 1)  # torch keeps the unbiased variance
        self.scatter = self.scatter + scatter + step.square() * (self.count * count / total)
        self.mean = self.mean + step * (count / total)
        self.count = total

    def store(self, norm: _BatchNorm) -> None:
        if isinstance(self.mean, Tensor) and isinstance(self.scatter, Tensor):
            assert norm.running_mean is not None and norm.running_var is not None
            norm.running_mean.copy_(self.mean)
            norm.running_var.copy_(self.scatter / (self.count - 1))


FOR_CHANNELS, FOR_WEIGHTS = ("least_squares", "sequential"), ("obc",)
"""Repairs that make sense for one kind of removal alone."""
KIND = settings.Kind("recovery", positions=2)
RECOVERIES: Mapping[str, Recovery | str] = {
    "none": none,
    "recalibrate_bn": recalibrate_bn,
    "least_squares": least_squares,
    "sequential": "autoprune.sequential:sequential",  # by name: these are written in terms of this module
    "fine_tune": "autoprune.distillation:fine_tune",
    "obc": "autoprune.obc:obc",
}


def compose(recoveries: Sequence[Recovery]) -> Recovery:
    """One recovery that runs several in order."""
    return partial(_in_turn, tuple(recoveries))


def _in_turn(recoveries: Sequence[Recovery], candidate: nn.Module, context: Context) -> None:
    for recovery in recoveries:
        recovery(candidate, context)


def find(recovery: str | Recovery, granularity: Granularity = "channel") -> Recovery:
    """A recovery by its name, by ``package.module:function``, several joined by ``+``, or the function itself.

    Options may follow a name: ``sequential,images=256+recalibrate_bn``. A built-in one that cannot repair what loses
    ``granularity`` is refused.
    """
    if isinstance(recovery, str):
        parts = [name.strip() for name in recovery.split("+")]
        for part in parts:
            _check_fits(part.partition(",")[0].strip(), granularity)
        return compose([settings.named(part, KIND, RECOVERIES) for part in parts])
    found: Recovery = function(recovery, KIND.name, RECOVERIES)
    _check_fits(getattr(found, "__name__", ""), granularity)
    return found


def _check_fits(name: str, granularity: Granularity) -> None:
    if name in (FOR_WEIGHTS if granularity == "channel" else FOR_CHANNELS):
        fitting = [other for other in RECOVERIES if other not in (*FOR_CHANNELS, *FOR_WEIGHTS)]
        fitting += FOR_CHANNELS if granularity == "channel" else FOR_WEIGHTS
        raise UserError(
            f"recovery {name} does not repair networks that lost {NOUNS[granularity]}: use {', '.join(fitting)}"
        )
