"""Operators that take channels apart and put them together."""

from __future__ import annotations

import numpy as np

from ..labels import Axes, Book, Labels
from .call import Call


def select(book: Book, call: Call) -> None:
    """One entry of an axis."""
    axes = call.axes(call.x)
    book.freeze(axes.pop(call.dims()[0]), "one of its channels is picked by number")
    book.set_axes(call.out, axes)


def unbind(book: Book, call: Call) -> None:
    """All entries of an axis, one by one."""
    axes = call.axes(call.x)
    book.freeze(axes.pop(call.dims()[0]), "its channels are taken apart one by one")
    for out in call.outputs:
        book.set_axes(out, axes)


def part(book: Book, call: Call) -> None:
    """A slice of an axis: the rest is left behind, and the proof finds code that counts on numbers."""
    axes, axis = call.axes(call.x), call.dims()[0]
    labels = axes[axis]
    if labels is not None:
        bounds = slice(call.given("start"), call.given("end"), call.given("step"))
        axes[axis] = labels[bounds]
    book.set_axes(call.out, axes)


def split(book: Book, call: Call) -> None:
    """Parts of an axis. Equal parts (chunk) must stay equal, so their channels leave together."""
    axes, axis = call.axes(call.x), call.dims()[0]
    labels, sizes = axes[axis], [out.shape[call.dims()[0]] for out in call.outputs]
    if labels is not None and len(set(sizes)) == 1:
        book.tie_rows(labels.reshape(len(sizes), -1))
    ends = np.cumsum(sizes)
    for out, size, end in zip(call.outputs, sizes, ends, strict=True):
        axes[axis] = None if labels is None else labels[end - size : end]
        book.set_axes(out, axes)


def glu(book: Book, call: Call) -> None:
    """The second half of an axis gates the first."""
    axes, axis = call.axes(call.x), call.dims()[0]
    labels = axes[axis]
    if labels is not None:
        axes[axis] = book.tie_rows(labels.reshape(2, -1))
    book.set_axes(call.out, axes)


def cat(book: Book, call: Call) -> None:
    """One axis after the other; the other axes meet."""
    axis = int(call.given("dim")) % call.out.dim()
    tensors = [
        tensor for tensor in call.inputs if len(call.shape(tensor)) == call.out.dim()
    ]  # not the legacy empty one
    result: Axes = []
    for a in range(call.out.dim()):
        parts = [(call.axes(tensor)[a], call.shape(tensor)[a]) for tensor in tensors]
        result.append(_join(book, parts) if a == axis else _all_same(book, [labels for labels, _ in parts]))
    book.set_axes(call.out, result)


def stack(book: Book, call: Call) -> None:
    """A new axis; the others meet."""
    columns = zip(*(call.axes(tensor) for tensor in call.inputs), strict=True)
    axes = [_all_same(book, list(column)) for column in columns]
    axes.insert(int(call.given("dim")) % call.out.dim(), None)
    book.set_axes(call.out, axes)


def _all_same(book: Book, parts: Axes) -> Labels | None:
    first = next((labels for labels in parts if labels is not None), None)
    if first is not None:
        for labels in parts:
            book.tie(first, labels)
    return first


def _join(book: Book, parts: list[tuple[Labels | None, int]]) -> Labels | None:
    """Labels one after the other; a part that is nobody's channels gets frozen ones."""
    if all(labels is None for labels, _ in parts):
        return None
    joined = []
    for labels, size in parts:
        if labels is None:
            labels = book.new(size)
            book.freeze(labels, "it is not made by any layer")
        joined.append(labels)
    return np.concatenate(joined)


def pad(book: Book, call: Call) -> None:
    """Constants around an axis."""
    axes = call.axes(call.x)
    for axis, (before, after) in enumerate(zip(call.shape(call.x), call.out.shape, strict=True)):
        if before != after:
            book.freeze(axes[axis], "it is padded with constant channels")
            axes[axis] = None
    book.set_axes(call.out, axes)


def pixel_shuffle(book: Book, call: Call) -> None:
    """Blocks of channels become pixels: a block leaves as a whole."""
    axes, block = call.axes(call.x), int(call.given("upscale_factor")) ** 2
    for labels in axes[-2:]:
        book.freeze(labels, "pixel shuffle enlarges it")
    channels = axes[-3]
    if channels is not None:
        channels = book.tie_rows(channels.reshape(-1, block).T)
    book.set_axes(call.out, [*axes[:-3], channels, None, None])


def pixel_unshuffle(book: Book, call: Call) -> None:
    """Pixels become blocks of channels."""
    axes, block = call.axes(call.x), int(call.given("downscale_factor")) ** 2
    for labels in axes[-2:]:
        book.freeze(labels, "pixel unshuffle reduces it")
    channels = None if axes[-3] is None else np.repeat(axes[-3], block)
    book.set_axes(call.out, [*axes[:-3], channels, None, None])


def channel_shuffle(book: Book, call: Call) -> None:
    """Channels of several groups are interleaved: one of each leaves together."""
    axes = call.axes(call.x)
    channels = axes[1]
    if channels is not None:
        table = channels.reshape(int(call.given("groups")), -1)
        book.tie_rows(table)
        axes[1] = np.ascontiguousarray(table.T).ravel()
    book.set_axes(call.out, axes)
