"""Make the sparse network of a scheme of single weights: the lowest scores become zeros, nothing gets smaller.

The sibling of :mod:`autoprune.slicing` for spaces of granularity "weight" and "n:m", with the same verbs. Scores are
ranked once; after that the mask of any count is one comparison:

    ranks = order(space, scores)               # one stable sort per tensor
    kept = best(space, scheme, ranks)          # one boolean array per group, in its weight's shape
    network = prune(model, space, kept)

What is kept is what :func:`autoprune.masks.highest` keeps, or :func:`autoprune.masks.highest_of` where n of m
neighbours along the inputs stay: the highest scores, among equal ones the last in memory, so that masks of rising
sparsity are nested. :func:`by_name` gives the masks as :mod:`autoprune.masks` has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune.errors import UserError
from autoprune.scheme import Scheme
from autoprune.slicing import named_tensors, with_tensors
from autoprune.space import Group, SearchSpace

Kept = Sequence[NDArray[np.bool_]]  # per group: where the weights stay, in the shape of its tensor
Entry = TypeVar("Entry", bound=np.generic)
Ranks = Sequence[NDArray[np.int32]]  # per group: how many weights of the tensor, or of the block, go before this one


def order(space: SearchSpace, scores: Sequence[NDArray[np.float64]]) -> list[NDArray[np.int32]]:
    """The rank of every weight among those it competes with, from 0 for the lowest score.

    ``scores`` have one entry per weight, in its tensor's memory order. Under n:m a weight competes with the others of
    its block of m neighbours along the inputs, else with all of its tensor.
    """
    found = []
    for group, score in zip(space.groups, scores, strict=True):
        shape = _shape(space, group)
        entries = _blocks(space, group, np.asarray(score).reshape(shape))
        ranks = np.empty(entries.shape, np.int32)
        lowest_first = np.argsort(entries, axis=-1, kind="stable")
        np.put_along_axis(ranks, lowest_first, np.arange(entries.shape[-1], dtype=np.int32), axis=-1)
        found.append(_whole(space, ranks, shape))
    return found


def best(space: SearchSpace, scheme: Scheme, ranks: Ranks) -> list[NDArray[np.bool_]]:
    """The masks of a scheme: each count's highest ranks stay."""
    return [
        rank >= (group.units - count // group.unit)
        for group, count, rank in zip(space.groups, scheme.kept, ranks, strict=True)
    ]


def choose(space: SearchSpace, scheme: Scheme, scores: Sequence[NDArray[np.float64]]) -> list[NDArray[np.bool_]]:
    """The masks of a scheme, from scores that are ranked for it alone."""
    space.check(scheme)
    return best(space, scheme, order(space, scores))


def everything(space: SearchSpace) -> list[NDArray[np.bool_]]:
    """The masks that remove nothing."""
    return [np.ones(_shape(space, group), dtype=bool) for group in space.groups]


def by_name(space: SearchSpace, kept: Kept, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The masks by the names of their tensors, as :mod:`autoprune.masks` takes them."""
    return {_path(group): torch.from_numpy(mask).to(device) for group, mask in zip(space.groups, kept, strict=True)}


def unit_scores(space: SearchSpace, scores: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """What a searcher may compare: one score per unit of every group.

    A unit is a weight. Under n:m it is one weight of every block, the best of each, the second best and so on, and its
    score is the sum of theirs.
    """
    if space.granularity != "n:m":
        return list(scores)
    found = []
    for group, score in zip(space.groups, scores, strict=True):
        blocks = _blocks(space, group, np.asarray(score).reshape(_shape(space, group)))
        found.append(np.sort(blocks.reshape(-1, group.units), axis=1)[:, ::-1].sum(0))
    return found


def prune(model: nn.Module, space: SearchSpace, kept: Kept) -> nn.Module:
    """A new network whose other weights are zero; ``model`` is left as it is."""
    masks = by_name(space, kept)
    tensors = {}
    for path, tensor in named_tensors(model):
        value = tensor.detach().clone()
        if path in masks:
            value.mul_(masks.pop(path).to(value.device))
        parameter = isinstance(tensor, nn.Parameter)
        tensors[path] = nn.Parameter(value, requires_grad=tensor.requires_grad) if parameter else value
    if masks:
        raise UserError(f"the network has no parameter {next(iter(masks))}: the search space does not fit it")
    return with_tensors(model, tensors)


def check_removed(model: nn.Module, space: SearchSpace, scheme: Scheme) -> None:
    """Refuse a network that has more non-zero weights than the scheme keeps, in a tensor or in a block of m."""
    tensors = dict(named_tensors(model))
    for group, count in zip(space.groups, scheme.kept, strict=True):
        path, shape = _path(group), _shape(space, group)
        if path not in tensors or tuple(tensors[path].shape) != shape:
            found = tuple(tensors[path].shape) if path in tensors else "missing"
            raise UserError(f"{path} is {found}, in the search space {shape}: the space does not fit this network")
        left = int(tensors[path].count_nonzero())
        if left > count:
            raise UserError(
                f"{path} has {left} weights that are not zero where the scheme keeps {count}: hold the masks while "
                "the network is trained (autoprune.masks.held)"
            )
        if space.granularity == "n:m" and count < group.width:
            stays = tensors[path].detach().cpu().numpy() != 0
            most = int(_blocks(space, group, stays).sum(-1).max())
            if most > count // group.unit:
                raise UserError(
                    f"{path} has {most} weights that are not zero in a block of {group.units}, where the scheme keeps "
                    f"{count // group.unit}: choose masks with autoprune.masks.highest_of"
                )


def non_zero(tensors: Mapping[str, Tensor], space: SearchSpace) -> Scheme:
    """The counts of the tensors' own zeros, by name; under n:m those of the fullest block of each."""
    counts = []
    for group in space.groups:
        stays = tensors[_path(group)].detach().cpu().numpy() != 0
        most = int(_blocks(space, group, stays).sum(-1).max()) if space.granularity == "n:m" else int(stays.sum())
        counts.append(max(1, most) * group.unit)
    return Scheme(tuple(counts), space.granularity)


def _path(group: Group) -> str:
    if group.tensor is None:
        raise UserError(f"group {group.name} is of channels: it names no tensor whose weights could be masked")
    return group.tensor


def _shape(space: SearchSpace, group: Group) -> tuple[int, ...]:
    shape = space.shapes[_path(group)]
    if prod(shape) != group.width:
        raise UserError(f"{group.tensor} has shape {shape}, which are not {group.width} weights")
    return shape


def _blocks(space: SearchSpace, group: Group, entries: NDArray[Entry]) -> NDArray[Entry]:
    """The weights that compete with each other along the last axis: those of a block under n:m, else all."""
    if space.granularity != "n:m":
        return entries.reshape(-1)
    moved = np.moveaxis(entries, 1, -1)
    return moved.reshape(*moved.shape[:-1], -1, group.units)


def _whole(space: SearchSpace, blocks: NDArray[Entry], shape: tuple[int, ...]) -> NDArray[Entry]:
    """The inverse of :func:`_blocks`."""
    if space.granularity != "n:m":
        return blocks.reshape(shape)
    return np.ascontiguousarray(np.moveaxis(blocks.reshape(*blocks.shape[:-2], -1), -1, 1))
