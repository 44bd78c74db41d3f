"""Optimal Brain Surgeon for single weights: which of a layer's weights go, and what the others become.

Every output of a layer has a row w of weights, and all rows multiply the same inputs X. Making w into v costs the
quadratic form (v - w) H (v - w)' with H = X'X (Hassibi and Stork 1993), so the Gram matrix is all there is to know.
Here H is *damped*, H + r I, which is the same as a ridge toward the dense weights; costs are in its terms. Given which
weights stay, the best v is a least-squares solution (:func:`refit`). Which ones should stay is a hard question, with
two answers of different price: :func:`sparsegpt` decides block after block of columns, for all rows at once
(Frantar and Alistarh 2023), and :func:`eliminate` removes one weight after the other from every row (OBC, Frantar and
Alistarh 2022).

Shapes: weights are (convolution groups, rows, columns), Gram matrices (convolution groups, columns, columns).
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from autoprune import gram, masking, masks
from autoprune.errors import UserError
from autoprune.gram import Gram
from autoprune.patches import WeightLayer, has_rows
from autoprune.recover import Context
from autoprune.ridge import scarcity
from autoprune.slicing import named_tensors
from autoprune.statistics import GRAM_LIMIT, POSITIONS, StatisticsNotice

Solver = Literal["sparsegpt", "obc"]

RIDGE = 1e-2  # of the mean diagonal of the Gram matrix
BLOCK = 128  # columns whose mask is decided together
MEMORY = 2**28  # bytes of the systems that are solved at the same time
PASS = 2**30  # bytes of the Gram matrices that are collected at the same time


class Neighbours(NamedTuple):
    """Semi-structured sparsity: ``n`` of every ``m`` neighbouring columns of a row stay."""

    n: int
    m: int


Keep = int | Neighbours
"""What stays: so many weights of all rows together, or n of every m neighbours."""


def refit(weight: Tensor, square: Tensor, mask: Tensor) -> Tensor:
    """The best weights with zeros outside the mask: exact least squares for every row, whatever its support.

    With S the weights of a row that stay and R the others, w_S + H_SS^-1 H_SR w_R. Rows with as many weights are
    solved together, in double precision.
    """
    result = weight * mask
    lost = (weight - result) @ square
    for group, rows in ((g, r) for g in range(len(weight)) for r in _chunks(mask[g].sum(1))):
        stays = mask[group, rows]
        most = max(1, int(stays.sum(1).max()))
        columns = stays.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        real = stays.gather(1, columns)  # shorter rows are filled up with equations of their own
        system = square[group][columns[:, :, None], columns[:, None, :]]
        system *= real[:, :, None] & real[:, None, :]
        system.diagonal(dim1=1, dim2=2).add_((~real).to(system))
        answer = torch.cholesky_solve(
            (lost[group, rows].gather(1, columns) * real)[:, :, None], torch.linalg.cholesky(system)
        )
        result[group, rows] = result[group, rows].scatter_add(1, columns, answer[:, :, 0])
    return result


def _chunks(kept: Tensor) -> Iterator[Tensor]:
    """Rows in groups that fit into memory together, those with as many weights side by side."""
    order = kept.argsort(descending=True, stable=True)
    start = 0
    while start < len(order):
        size = max(1, int(kept[order[start]]))
        stop = start + max(1, MEMORY // (3 * 8 * size**2))  # the gathered system, its factor, and an index
        yield order[start:stop]
        start = stop


def sparsegpt(weight: Tensor, square: Tensor, keep: Keep, block: int = BLOCK) -> Tensor:
    """Masks and weights together, from the first column to the last (Frantar and Alistarh 2023).

    With U'U = H^-1, U upper triangular, zeroing the weight of a row in column j costs w_j^2 / U_jj^2, if the columns
    after it make up for it: they change by -(w_j / U_jj) U_j:. The mask of ``block`` columns is decided when they are
    reached, by that cost, over all rows; every block keeps the same share. For n of m neighbours a block is m columns.
    """
    columns = weight.shape[2]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(square))
    factor = torch.linalg.cholesky(inverse, upper=True)
    size = keep.m if isinstance(keep, Neighbours) else block
    weight = weight.clone()
    known = 0
    for start in range(0, columns, size):
        stop = min(start + size, columns)
        own = slice(start, stop)
        costs = (weight[..., own] / factor.diagonal(dim1=1, dim2=2)[:, None, own]).square()
        if isinstance(keep, Neighbours):
            mask = masks.highest_of(costs, *keep, axis=2)
        else:
            mask = masks.highest(costs, keep * stop // columns - known)
            known += int(mask.sum())
        errors = torch.empty_like(costs)
        for column in range(start, stop):
            goes = ~mask[..., column - start]
            errors[..., column - start] = goes * weight[..., column] / factor[:, None, column, column]
            rest = slice(column + 1, stop)
            weight[..., rest] -= errors[..., column - start, None] * factor[:, None, column, rest]
            weight[..., column].masked_fill_(goes, 0)
        weight[..., stop:] -= errors @ factor[:, own, stop:]
    return weight


def eliminate(weight: Tensor, square: Tensor, keep: Keep) -> Tensor:
    """The exact greedy order: from every row, again and again, the weight that costs least to lose; then a refit.

    Losing weight p of a row costs w_p^2 / [H^-1]_pp, after which w and H^-1 of this row are those without it. What goes
    is what was cheapest over all rows together (Frantar and Alistarh 2022, algorithms 1 and 2). The price is a
    number of multiplications that grows with rows x columns^3 / 2, and as many accesses to memory: 64 rows took
    0.8 seconds of one core for 288 columns, 5 for 576, so it is a reference for layers of up to a thousand columns.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(square))
    costs = torch.full_like(weight, math.inf)
    rows = max(1, MEMORY // (8 * weight.shape[2] ** 2))
    for group in range(len(weight)):
        for start in range(0, weight.shape[1], rows):
            own = slice(start, start + rows)
            costs[group, own] = _order(weight[group, own], inverse[group], keep)
    mask = costs.isinf() if isinstance(keep, Neighbours) else masks.highest(costs, keep)
    return refit(weight, square, mask)


def _order(weight: Tensor, inverse: Tensor, keep: Keep) -> Tensor:
    """What the loss of each weight costs its row when its turn comes, never falling; infinite for those that stay.

    The inverse of a row is never written: the removals are rows B of a Cholesky factor, H^-1 - B'B, of which the
    diagonal follows every step.
    """
    rows, columns = weight.shape
    block, spare = (keep.m, keep.m - keep.n) if isinstance(keep, Neighbours) else (columns, columns)
    steps = columns // block * spare
    every = torch.arange(rows)
    weight, diagonal = weight.clone(), inverse.diagonal().expand(rows, columns).clone()
    factor = weight.new_zeros(rows, steps, columns)
    costs = torch.full_like(weight, math.inf)
    worst = weight.new_zeros(rows)
    closed = torch.zeros_like(weight, dtype=torch.bool)
    taken = weight.new_zeros(rows, columns // block)
    for step in range(steps):
        now = (weight.square() / diagonal).masked_fill(closed, math.inf)
        chosen = now.argmin(1)
        worst = torch.maximum(worst * (1 + 1e-12), now[every, chosen])
        costs[every, chosen] = worst
        known = factor[:, :step]
        root = diagonal[every, chosen].sqrt()
        new = inverse[chosen] - torch.einsum("rk,rkc->rc", known[every, :, chosen], known)
        new /= root[:, None]
        weight -= new * (weight[every, chosen] / root)[:, None]
        diagonal -= new.square()
        factor[:, step] = new
        diagonal[every, chosen] = 1
        closed[every, chosen] = True
        taken[every, chosen // block] += 1
        closed |= (taken == spare).repeat_interleave(block, 1)
    return costs


SOLVERS = {"sparsegpt": sparsegpt, "obc": eliminate}


def solve(weight: Tensor, square: Tensor, keep: Keep, solver: Solver = "sparsegpt") -> Tensor:
    """A layer's weights, sparse: masks by a solver, and then the best weights for them.

    ``weight`` has the layer's own shape. Neighbours are input channels, at the same place of a kernel.
    """
    if solver not in SOLVERS:
        raise UserError(f"solver {solver!r} is unknown: use one of {', '.join(SOLVERS)}")
    inputs, taps = weight.shape[1], weight[0, 0].numel()
    if isinstance(keep, Neighbours) and inputs % keep.m:
        raise UserError(f"{keep.n}:{keep.m} sparsity: {keep.m} does not divide the {inputs} inputs of a layer")
    order = torch.arange(inputs * taps).reshape(inputs, taps).T.flatten()  # channels side by side
    dense = _rows(weight, square)[..., order]
    square = square[:, order][:, :, order]
    sparse = SOLVERS[solver](dense, square, keep)
    if solver == "sparsegpt":
        sparse = refit(dense, square, sparse != 0)
    return sparse[..., order.argsort()].reshape(weight.shape)


def solve_given(weight: Tensor, square: Tensor, mask: Tensor) -> Tensor:
    """A layer's weights, refitted to a given mask; both have the layer's own shape."""
    return refit(_rows(weight, square), square, _rows(mask, square)).reshape(weight.shape)


def _rows(tensor: Tensor, square: Tensor) -> Tensor:
    return tensor.reshape(len(square), -1, square.shape[1])


def cost(weight: Tensor, new: Tensor, square: Tensor) -> Tensor:
    """What a change of a layer's weights costs each of its rows, output by output."""
    change = _rows(new - weight, square)
    return ((change @ square) * change).sum(2).flatten()


def obc(candidate: nn.Module, context: Context, ridge: float = RIDGE) -> None:
    """Recovery of sparse networks: every layer's weights that stay take over what the others contributed, exactly.

    The masks are the candidate's own (``context.kept``), the Gram matrices those of the dense network's inputs. What a
    layer's output loses on average goes to its bias or the batch norm behind it.
    """
    if context.space.granularity == "channel":
        raise UserError("recovery obc repairs networks that lost single weights: use least_squares or sequential")
    for name, mask in masking.by_name(context.space, context.kept).items():
        if name in context.statistics.grams and not bool(mask.all()):
            found = context.statistics.grams[name]
            dense = context.model.get_parameter(name).detach().cpu().double()
            place(candidate, name, dense, solve_given(dense, damped(name, found, ridge), mask), found)


def damped(name: str, found: Gram, ridge: float = RIDGE) -> Tensor:
    """The Gram matrix with the ridge on its diagonal, which grows where there are few rows, with a notice."""
    if not (math.isfinite(ridge) and ridge > 0):
        raise UserError(f"ridge = {ridge}: a positive number is needed")
    columns = found.second.shape[1]
    if found.count <= columns:
        warnings.warn(
            f"{name}: {found.count} calibration rows have rank {found.count} at most, {columns} are needed; the ridge "
            "is raised in proportion, give more calibration images",
            StatisticsNotice,
            stacklevel=2,
        )
    square = found.second.clone()
    if not torch.isfinite(square).all():
        raise UserError(f"{name}: what this layer reads is not finite; look for broken images or weights before it")
    diagonal = square.diagonal(dim1=1, dim2=2)
    diagonal += ridge * scarcity(found.count, columns) * diagonal.mean(1, keepdim=True) + 1e-12
    return square


def collect(
    model: nn.Module,
    names: Sequence[str],
    batches: Sequence[tuple[Any, Any]],
    positions: int = POSITIONS,
    seed: int = 0,
) -> Iterator[tuple[str, Gram]]:
    """The Gram matrix of every named weight, one after the other, in as few passes as a gigabyte allows.

    Left out, with a notice, are weights that several layers share, layers that are no product of weight and rows,
    layers that never run as a module, and matrices above ``statistics.GRAM_LIMIT``.
    """
    layers = readable(model, names)
    found: set[str] = set()
    for some in _passes(layers):
        grams = gram.collect(model, some, batches, positions, seed)
        found |= grams.keys()
        while grams:
            name = next(iter(grams))
            yield name, grams.pop(name)
    missing = [name for name in names if name not in found]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        warnings.warn(
            f"{', '.join(missing[:3])}{more}: not seen to run as weight times input in one layer within the memory "
            "limit; the weights that stay are left as they are",
            StatisticsNotice,
            stacklevel=2,
        )


def readable(model: nn.Module, names: Sequence[str]) -> dict[str, WeightLayer]:
    """The layers of the named weights that may have a Gram matrix, by the name of the weight."""
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    layers = {name: model.get_submodule(name.rpartition(".")[0]) for name in names}
    return {
        name: layer
        for name, layer in layers.items()
        if has_rows(layer)
        and all(owners[id(p)] == 1 for p in layer._parameters.values() if p is not None)
        and _bytes(layer) <= GRAM_LIMIT
    }


def _bytes(layer: WeightLayer) -> int:
    return 8 * layer.weight[0].numel() ** 2 * int(getattr(layer, "groups", 1))


def _passes(layers: Mapping[str, WeightLayer]) -> Iterator[dict[str, WeightLayer]]:
    """The layers in turn, as many together as memory allows."""
    some: dict[str, WeightLayer] = {}
    for name, layer in layers.items():
        if some and sum(map(_bytes, some.values())) + _bytes(layer) > PASS:
            yield some
            some = {}
        some[name] = layer
    if some:
        yield some


@torch.no_grad()
def place(candidate: nn.Module, name: str, dense: Tensor, sparse: Tensor, found: Gram) -> None:
    """Put a layer's new weights in the place of the dense ones; what its output lost on average is absorbed."""
    tensors = dict(named_tensors(candidate))
    tensors[name].copy_(sparse)
    lost = (_rows(dense - sparse, found.second) @ found.mean[:, :, None]).flatten()
    found.absorb(lost, tensors)
