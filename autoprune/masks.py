"""Masks: which single weights stay. One primitive keeps an exact number of them, and everything else is built on it.

A mask is a boolean tensor of its weight's shape, True where the weight stays; several go by the names of their weights.
Published systems disagree by one about how many weights a sparsity removes, and about ties; here a sparsity s removes
exactly round(s n) of n weights, the lowest scores first and among equal ones the first in memory, so that masks of
rising sparsity are nested and equal scores do no harm.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from autoprune.errors import UserError

Masks = Mapping[str, Tensor]


def weights(model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """The weights of convolutions and linear layers by name, such as ``layer1.0.conv1.weight``, in the model's order.

    ``include`` and ``exclude`` are patterns of the names, with or without ``.weight``. A shared weight is listed once.
    """
    found: dict[str, nn.Parameter] = {}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear | _ConvNd) and isinstance(weight, nn.Parameter):
            name = f"{path}.weight" if path else "weight"
            if not any(weight is other for other in found.values()):
                found[name] = weight
    chosen = {n: w for n, w in found.items() if _named(n, include) and not _named(n, exclude)}
    for pattern in (*include, *exclude):
        if not any(_named(name, [pattern]) for name in found):
            raise UserError(
                f"{pattern!r} names no weight of a convolution or linear layer: there are {', '.join(found)}"
            )
    if not chosen:
        raise UserError("no weight is left to prune: include more, or exclude less")
    return chosen


def _named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, p) or fnmatchcase(name.removesuffix(".weight"), p) for p in patterns)


def kept(entries: int, sparsity: float) -> int:
    """How many of so many weights a sparsity leaves, one at least."""
    if not 0 <= sparsity < 1:
        raise UserError(f"sparsity {sparsity!r}: the share of weights to remove is at least 0 and below 1")
    return max(1, entries - round(sparsity * entries))


def highest(scores: Tensor, count: int) -> Tensor:
    """The mask of the ``count`` highest scores; among equal ones the last in memory stay."""
    if not 0 <= count <= scores.numel():
        raise UserError(f"{count} of {scores.numel()} weights cannot stay")
    order = scores.flatten().argsort(stable=True)
    mask = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[: scores.numel() - count]] = False
    return mask.reshape(scores.shape)


def highest_of(scores: Tensor, n: int, m: int, axis: int = 1) -> Tensor:
    """The mask that keeps the ``n`` highest of every ``m`` neighbours along an axis (by default the inputs)."""
    length = scores.shape[axis]
    if not 1 <= n <= m:
        raise UserError(f"{n}:{m} sparsity: n of m weights stay, with n from 1 to m")
    if length % m:
        raise UserError(
            f"{n}:{m} sparsity: {m} does not divide the {length} entries of axis {axis}; exclude such a layer"
        )
    blocks = scores.movedim(axis, -1).unflatten(-1, (-1, m))
    order = blocks.argsort(dim=-1, stable=True)
    mask = torch.ones_like(blocks, dtype=torch.bool).scatter_(-1, order[..., : m - n], False)
    return mask.flatten(-2).movedim(-1, axis)


def uniform(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks with the same sparsity in every tensor."""
    return {name: highest(score, kept(score.numel(), sparsity)) for name, score in scores.items()}


def ranked(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks of one ranking over all tensors together; the best weight of each stays."""
    flat = [score.detach().flatten().double() for score in scores.values()]
    best = [part.clone().index_fill_(0, part.argmax(), torch.inf) for part in flat]
    together = highest(torch.cat(best), kept(sum(len(part) for part in flat), sparsity))
    parts = together.split([len(part) for part in flat])
    return {name: part.reshape(scores[name].shape) for name, part in zip(scores, parts, strict=True)}


@torch.no_grad()
def impose(model: nn.Module, masks: Masks) -> None:
    """Set the weights that do not stay to zero, in place."""
    for name, mask in masks.items():
        model.get_parameter(name).mul_(mask)


def sparsity(model: nn.Module, names: Sequence[str]) -> float:
    """The share of exact zeros in the named weights together."""
    found = [model.get_parameter(name) for name in names]
    return 1 - sum(int(w.count_nonzero()) for w in found) / sum(w.numel() for w in found)


def present(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """The masks that a sparse network's own zeros make."""
    return {name: model.get_parameter(name).detach() != 0 for name in names}


@contextmanager
def held(model: nn.Module, masks: Masks, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Masked weights stay zero through every step of the optimizer, whatever its momentum and decay say."""
    impose(model, masks)
    hook = optimizer.register_step_post_hook(lambda *_: impose(model, masks))
    try:
        yield
    finally:
        hook.remove()
