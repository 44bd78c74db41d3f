"""Fine-tune a candidate for a moment, and let the next ones start from its weights (NetAdapt, Yang et al., ECCV 2018).

A tuned network is narrower than the dense one, while everything that makes a candidate (slicing, recovery) starts
from tensors of dense shape. :func:`embed` is the bridge: the tuned weights at the positions that were kept, zeros
elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from autoprune import masks
from autoprune.errors import UserError
from autoprune.forward import to
from autoprune.slicing import Kept, named_tensors, selections, with_tensors
from autoprune.space import SearchSpace
from autoprune.statistics import Batches
from autoprune.training import descend

T = TypeVar("T")

STEPS = 20
LR = 0.01


@dataclass(frozen=True, eq=False)
class Tuning:
    """How every candidate is trained before it is measured: so many steps of SGD with momentum.

    ``batches`` are (input, class numbers) pairs that neither calibration nor validation shares; a step takes one of
    them as it is. ``lr`` is constant, ``weight_decay`` holds for every parameter.
    """

    batches: Batches
    steps: int = STEPS
    lr: float = LR
    momentum: float = 0.9
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if not len(self.batches):
            raise UserError("the tune data holds no batch: tuning needs at least one")
        if self.steps < 1:
            raise UserError(f"tune steps = {self.steps}: at least 1 is needed; leave the tune data out to tune nothing")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UserError(f"tune lr = {self.lr}: a learning rate is a positive number")
        if not (0 <= self.momentum < 1 and self.weight_decay >= 0):
            raise UserError(
                f"tune momentum = {self.momentum}, weight decay = {self.weight_decay}: "
                "0 <= momentum < 1 and 0 <= weight decay are needed"
            )


@dataclass(frozen=True, eq=False)
class Origin:
    """What a candidate is cut from: a network of dense shape, and the units of each group that it has left."""

    model: nn.Module
    kept: Kept

    def check(self, space: SearchSpace, kept: Kept) -> None:
        """Refuse units that this network has lost already: it has only zeros for them."""
        for group, left, wanted in zip(space.groups, self.kept, kept, strict=True):
            masked = wanted.dtype == bool
            lost = int((wanted & ~left).sum()) if masked else int((~np.isin(wanted, left)).sum())
            if lost:
                raise UserError(
                    f"group {group.name}: {lost} of the {int(wanted.sum()) if masked else len(wanted)} units to keep "
                    "are not among those of the scheme it comes after: a lineage only ever removes"
                )


def tune(
    model: nn.Module, tuning: Tuning, seed: Sequence[int], share: float = 1.0, keep: masks.Masks | None = None
) -> None:
    """Train a candidate in place on cross-entropy; it comes back with its modes and ``requires_grad`` as they were.

    All floating-point parameters are trained, frozen ones too, for ``share`` of the steps, rounded up. ``seed``
    decides the order of the batches, each of which is used once before any is used again, and what dropout draws:
    the same seed gives the same weights on one CPU with one number of threads. Running statistics of batch norms lag
    behind the weights afterwards and are best estimated anew. Weights outside the masks ``keep`` stay zero.
    """
    device = next(model.parameters()).device
    with training(model, seed) as (parameters, rng):
        optimizer = torch.optim.SGD(
            parameters, lr=tuning.lr, momentum=tuning.momentum, weight_decay=tuning.weight_decay
        )
        batches = rounds(tuning.batches, rng)
        with masks.held(model, keep or {}, optimizer):
            for _ in range(math.ceil(tuning.steps * share)):
                inputs, labels = next(batches)
                descend(model, optimizer, to(inputs, device), to(labels, device))


@contextmanager
def training(model: nn.Module, seed: int | Sequence[int]) -> Iterator[tuple[list[nn.Parameter], np.random.Generator]]:
    """The parameters to train and a random stream, in training mode; modes and ``requires_grad`` are put back after."""
    rng = np.random.default_rng(seed)
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters() if parameter.is_floating_point()]
    modes = [(module, module.training) for module in model.modules()]
    device = flags[0][0].device
    try:
        model.train()
        with torch.enable_grad(), torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
            torch.manual_seed(int(rng.integers(2**63)))  # dropout draws from the global stream
            for parameter, _ in flags:
                parameter.requires_grad_()
            yield [parameter for parameter, _ in flags], rng
    finally:
        for module, training in modes:
            module.training = training
        for parameter, wanted in flags:
            parameter.requires_grad_(wanted)
            parameter.grad = None


def rounds(items: Sequence[T], rng: np.random.Generator) -> Iterator[T]:
    """All items in a random order, again and again."""
    while True:
        yield from (items[int(at)] for at in rng.permutation(len(items)))


def embed(dense: nn.Module, space: SearchSpace, kept: Kept, tuned: nn.Module) -> nn.Module:
    """A copy of the dense network with a pruned one's tensors at the kept units, and zeros at all others.

    Pruning it to the same units gives the pruned network back; pruned further, what it has lost already
    contributes nothing.
    """
    shapes = {path: tensor.shape for path, tensor in named_tensors(dense)}
    chosen = selections(space, kept, shapes)
    narrow = dict(named_tensors(tuned))
    return with_tensors(dense, {path: _widened(narrow[path], shapes[path], chosen.get(path, {})) for path in shapes})


def _widened(tensor: Tensor, shape: Sequence[int], axes: Any) -> Tensor:
    value = tensor.detach().clone()
    for axis, stays in axes.items():
        wide = value.new_zeros((*value.shape[:axis], shape[axis], *value.shape[axis + 1 :]))
        value = wide.index_copy_(axis, stays.to(value.device), value)
    return nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
