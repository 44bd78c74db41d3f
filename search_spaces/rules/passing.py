"""Operators that leave channels alone."""

from __future__ import annotations

import re

from ..labels import Book, Labels
from .call import Call

SPATIAL = re.compile(r"(?:pool|upsample|pad)\w*?([123])d")


def nothing(book: Book, call: Call) -> None:
    """Only the size of the input matters; what comes out is nobody's channels."""


def same(book: Book, call: Call) -> None:
    """What comes out has the axes of the first input."""
    book.set_axes(call.out, call.axes(call.x))


def buffer(book: Book, call: Call) -> None:
    """A new tensor that data will be written to: equally long axes are taken for the same."""
    before, after = call.shape(call.x), tuple(call.out.shape)
    if len(before) == len(after):
        axes = call.axes(call.x)
        book.set_axes(call.out, [axes[i] if before[i] == after[i] else None for i in range(len(after))])


def pointwise(book: Book, call: Call) -> None:
    """Broadcast: axes that meet are the same axis."""
    rank = call.out.dim()
    axes = [_meeting(book, call, axis - rank, size) for axis, size in enumerate(call.out.shape)]
    for tensor in call.outputs:
        if tensor.shape == call.out.shape:
            book.set_axes(tensor, axes)


def _meeting(book: Book, call: Call, axis: int, size: int) -> Labels | None:
    """Tie what meets along an axis (counted from the end) that comes out with ``size`` entries."""
    present = [
        call.axes(tensor)[axis]
        for tensor in call.inputs
        if len(call.shape(tensor)) >= -axis and call.shape(tensor)[axis] == size
    ]
    first = next((labels for labels in present if labels is not None), None)
    for labels in present:
        if first is not None and (labels is not None or size > 1):
            book.tie(first, labels)
    return first


def batch_norm(book: Book, call: Call) -> None:
    """Every channel has its own scale, shift and statistics."""
    axes = call.axes(call.x)
    for vector in call.inputs[1:]:
        book.tie(axes[1], call.axes(vector)[0])
    book.set_axes(call.out, axes)


def spatial(book: Book, call: Call) -> None:
    """Pooling, resizing, reflecting: the last axes change, as many as the operator's name says."""
    lead = call.out.dim() - int(SPATIAL.search(call.name).group(1))  # type: ignore[union-attr]
    axes = call.axes(call.x)
    for labels in axes[lead:]:
        book.freeze(labels, f"{call.name} slides over it")
    book.set_axes(call.out, [*axes[:lead], *[None] * (call.out.dim() - lead)])
