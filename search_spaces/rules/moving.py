"""Operators that move axes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..labels import Axes, Book, Labels
from .call import Call

ALONE = "all its channels hang together"


def permute(book: Book, call: Call) -> None:
    """The axes in another order."""
    axes, rank = call.axes(call.x), call.x.dim()
    if call.name.startswith("permute"):
        order = call.dims("dims")
    else:
        i, j = (
            (0, rank - 1)
            if call.name.startswith("t_") or call.name == "t"
            else (call.given("dim0"), call.given("dim1"))
        )
        order = list(range(rank))
        order[i], order[j] = order[j], order[i]
    book.set_axes(call.out, [axes[axis] for axis in order])


def squeeze(book: Book, call: Call) -> None:
    """Axes of length one go."""
    shape, dims = call.shape(call.x), set(call.dims())
    axes = [labels for i, labels in enumerate(call.axes(call.x)) if not (i in dims and shape[i] == 1)]
    book.set_axes(call.out, axes)


def unsqueeze(book: Book, call: Call) -> None:
    """An axis of length one comes."""
    axes = call.axes(call.x)
    axes.insert(int(call.given("dim")) % call.out.dim(), None)
    book.set_axes(call.out, axes)


def expand(book: Book, call: Call) -> None:
    """Axes of length one are repeated, new ones come in front."""
    lead = call.out.dim() - len(call.shape(call.x))
    book.set_axes(call.out, [*[None] * lead, *call.axes(call.x)])


def repeat(book: Book, call: Call) -> None:
    """Every axis a number of times; the copies of a channel leave together."""
    times = [int(n) for n in call.given("repeats")]
    lead = len(times) - len(call.shape(call.x))
    axes = [None if a is None else np.tile(a, n) for a, n in zip(call.axes(call.x), times[lead:], strict=True)]
    book.set_axes(call.out, [*[None] * lead, *axes])


def reshape(book: Book, call: Call) -> None:
    """Follow every axis through its run of old and new axes with the same number of entries."""
    old, new = call.shape(call.x), tuple(call.out.shape)
    asked = call.given("size") or new
    axes = call.axes(call.x)
    result: Axes = [None] * len(new)
    for before, after in _runs(old, new):
        tracked = [axis for axis in before if axes[axis] is not None]
        if len(tracked) != 1:
            continue
        grid = _grid(axes[tracked[0]], tracked[0] - before[0], [old[i] for i in before], [new[i] for i in after])
        place, labels = _place(book, grid, [asked[i] == -1 for i in after])
        if labels is not None:
            result[after[place]] = labels
            axes[tracked[0]] = None
    for labels in axes:
        alone = labels is not None and (labels == labels[0]).all()
        book.freeze(labels, ALONE if alone else f"it is reshaped from {list(old)} to {list(new)}")
    book.set_axes(call.out, result)


def _runs(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Old and new axes that hold the same entries, from the left."""
    i = j = 0
    while i < len(old) and j < len(new):
        before, after, a, b = [i], [j], old[i], new[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b and i < len(old):
                a, i = a * old[i], i + 1
                before.append(i - 1)
            elif b < a and j < len(new):
                b, j = b * new[j], j + 1
                after.append(j - 1)
            else:
                return
        yield before, after


def _grid(labels: Labels | None, axis: int, old: list[int], new: list[int]) -> Labels:
    """The label of every entry of a run, in its new shape."""
    assert labels is not None
    shape = [1] * len(old)
    shape[axis] = -1
    return np.broadcast_to(labels.reshape(shape), old).reshape(new)


def _place(book: Book, grid: Labels, free: list[bool]) -> tuple[int, Labels | None]:
    """The new axis along which labels vary, and its labels.

    An axis that was split in two is either so many blocks or blocks of such a size. The axis whose size
    the code left open (-1) is the one that can shrink, else the second: a number of groups or heads is
    usually fixed.
    """
    varying = [axis for axis in range(grid.ndim) if not (grid == grid.take([0], axis)).all()]
    if not varying or len(varying) > 2:
        return 0, None
    flat = grid[tuple(slice(None) if axis in varying else 0 for axis in range(grid.ndim))]
    if len(varying) == 1:
        return varying[0], np.ascontiguousarray(flat)
    if free[varying[0]]:
        return varying[0], book.tie_rows(flat.T)
    return varying[1], book.tie_rows(flat)
