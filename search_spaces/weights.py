"""Single weights of any tensors of convolutions and linear layers become a search space: a sparsity per layer.

    space = define(model, example, exclude=["fc"])          # any number of weights, in steps of a thousandth
    space = define(model, example, pattern="2:4")           # every layer whole, or 2 of 4 neighbours

Every tensor is a group of its own, whose width are its entries; which weights go a criterion says. Nothing gets
smaller, so nothing has to be proved. First and last layers are tensors like any other: leave them out by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from autoprune import masks
from autoprune.errors import UserError
from autoprune.forward import Example
from autoprune.space import Group, LeftOut, SearchSpace

from .traced import measured

LEVELS = 1000


def define(
    model: nn.Module,
    example: Example,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    levels: int = LEVELS,
    pattern: str | None = None,
) -> SearchSpace:
    """The space of ``model``'s weights whose names match an ``include`` pattern and no ``exclude`` pattern.

    Patterns are shell globs over names such as ``layer1.0.conv1``; what lies inside a module goes with it. Legal
    counts are those of ``levels`` equal steps, each rounded down to whole weights, so that a sparsity on the grid can
    be had in every tensor without exceeding it; a searcher tries these, not every number of weights.

    With a ``pattern`` n of m neighbouring inputs stay, and the granularity is "n:m". "2:4" leaves every layer the
    choice of 2 of 4 or all, "1+2:4" also of 1 of 4, and "any:4" of any number. Tensors whose inputs m does not divide
    are left out, with the reason, and so are weights that the example does not use or that another module owns.

    Costs know the network's layers from one forward pass of ``example``, as in :mod:`autoprune.search_spaces.traced`.
    """
    if levels < 2:
        raise UserError(f"levels = {levels}: at least 2 are needed, or nothing could be removed")
    kept_of = None if pattern is None else read_pattern(pattern)
    layers, shapes = measured(model, example)
    used = {layer.weight for layer in layers}
    groups, left_out = [], []
    for path, weight in masks.weights(model).items():
        name = path.removesuffix(".weight")
        module = model.get_submodule(path.rpartition(".")[0])
        reason = _unwanted(name, include, exclude)
        if reason is None and path not in shapes:
            reason = "another module owns its weight, so it stays whole"
        if reason is None and path not in used:
            reason = "the example does not use it, so it stays whole"
        if reason is None and kept_of is not None:
            reason = _without_blocks(module, tuple(weight.shape), kept_of[1])
        if reason is not None:
            left_out.append(LeftOut(name, reason))
            continue
        entries, unit = weight.numel(), 1
        if kept_of is None:
            counts = tuple(sorted({max(1, entries * step // levels) for step in range(1, levels + 1)}))
        else:
            unit = entries // kept_of[1]
            counts = tuple(unit * n for n in kept_of[0])
        groups.append(Group(name, entries, (), counts, unit, tensor=path, itemsize=weight.element_size()))
    _refuse_idle((*include, *exclude), [*(group.name for group in groups), *(left.name for left in left_out)])
    order = {layer.weight: at for at, layer in reversed(list(enumerate(layers)))}
    groups.sort(key=lambda group: order[str(group.tensor)])
    return SearchSpace(
        tuple(groups), layers, shapes, tuple(left_out), granularity="weight" if kept_of is None else "n:m"
    )


def read_pattern(text: str) -> tuple[list[int], int]:
    """How many neighbours may stay, ascending and with all of them last, and how many there are."""
    few, colon, block = text.strip().partition(":")
    wrong = UserError(f"pattern {text!r}: write n of m as 2:4, a choice as 1+2:4, or any:4")
    try:
        m = int(block)
        chosen = list(range(1, m + 1)) if few == "any" else [int(n) for n in few.split("+")]
    except ValueError:
        raise wrong from None
    if not colon or m < 2 or min(chosen) < 1 or max(chosen) > m:
        raise wrong
    twice = next((n for n in chosen if chosen.count(n) > 1), None)
    if twice is not None:
        raise UserError(f"pattern {text!r} names {twice} of {m} twice: once is enough")
    return sorted({*chosen, m}), m


def _unwanted(name: str, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    hit = next((pattern for pattern in exclude if _matches(pattern, name)), None)
    if hit is not None:
        return f"excluded by {hit!r}"
    if not any(_matches(pattern, name) for pattern in include):
        return f"not included by {', '.join(map(repr, include))}"
    return None


def _matches(pattern: str, name: str) -> bool:
    plain = pattern.removesuffix(".weight")
    return fnmatchcase(name, plain) or fnmatchcase(name, f"{plain}.*")


def _refuse_idle(patterns: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a pattern that is given twice or matches nothing."""
    for pattern in patterns:
        if patterns.count(pattern) > 1:
            raise UserError(f"{pattern!r} is named twice: name every tensor once")
        if not any(_matches(pattern, name) for name in names):
            raise UserError(
                f"{pattern!r} names no weight of a convolution or linear layer: there are {', '.join(names)}"
            )


def _without_blocks(module: nn.Module, shape: tuple[int, ...], m: int) -> str | None:
    """Why a weight has no blocks of m neighbours along its inputs."""
    if isinstance(module, _ConvTransposeNd):
        return "a transposed convolution has its inputs along another axis, so no pattern is laid over it"
    if shape[1] % m:
        return f"{m} does not divide the {shape[1]} inputs of its filters"
    return None
