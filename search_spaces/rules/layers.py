"""Operators with weights: they read what arrives and make new channels."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from ..labels import Axes, Book, Labels, Use
from .call import Call


def convolution(book: Book, call: Call) -> None:
    """Output channels are made by axis 0 of the weight (1 when transposed), inputs read by the other."""
    x, w, bias = call.given("input"), call.given("weight"), call.given("bias")
    x_axes, w_axes = call.axes(x), call.axes(w)
    for labels in (*x_axes[2:], *w_axes[2:]):
        book.freeze(labels, "a convolution slides over it")
    outgoing = _filters(book, call, x_axes[1], w_axes)
    if bias is not None:
        book.tie(call.axes(bias)[0], outgoing)
    book.set_axes(call.out, [x_axes[0], outgoing, *[None] * (call.out.dim() - 2)])
    height, width = (*call.shape(x)[2:], 1)[:2]
    pixels = call.shape(x)[2:] if call.given("transposed") else call.out.shape[2:]
    use = Use(
        "conv",
        float(call.out.shape[0] * math.prod(pixels) * w.numel()),
        kernel=int(call.shape(w)[-1]),
        stride=int(call.given("stride")[0]),
        groups=int(call.given("groups")),
        input_size=(int(height), int(width)),
    )
    book.use(w, use)


def _filters(book: Book, call: Call, incoming: Labels | None, w_axes: Axes) -> Labels | None:
    """Tie a convolution's weight to what arrives; the labels of what it makes."""
    x, w = call.given("input"), call.given("weight")
    groups, transposed = int(call.given("groups")), bool(call.given("transposed"))
    if groups == 1:
        if book.weight(w) is None:
            for labels in (incoming, *w_axes):
                book.freeze(labels, "a convolution whose weight is computed reads it")
            return None
        return _weight(book, incoming, w_axes[0 if transposed else 1], w_axes[1 if transposed else 0])
    if groups == call.shape(x)[1] == call.out.shape[1]:  # depthwise: one filter a channel
        if w_axes[0] is None:
            return incoming  # one filter repeated for however many channels there are
        book.tie(incoming, w_axes[0], "it reads a tensor of fixed width")
        return w_axes[0]
    return _grouped(book, incoming, w_axes, groups, transposed)


def _grouped(book: Book, incoming: Labels | None, w_axes: Axes, groups: int, transposed: bool) -> Labels | None:
    """Every convolution group must lose the same number, so a unit takes one channel of each."""
    outgoing, narrow = w_axes[0], w_axes[1]
    if transposed or outgoing is None or narrow is None:
        for labels in (incoming, *w_axes):
            book.freeze(labels, "it passes a grouped convolution that cannot be cut evenly")
        return None
    if len(narrow) == 1:  # several filters per channel: they leave with their input
        repeated = None if incoming is None else np.repeat(incoming, len(outgoing) // groups)
        book.tie(repeated, outgoing, "it reads a tensor of fixed width")
        return outgoing
    book.tie_rows(outgoing.reshape(groups, -1))
    _weight(book, incoming, np.tile(narrow, groups), outgoing)
    return outgoing


def _weight(book: Book, incoming: Labels | None, reading: Labels | None, making: Labels | None) -> Labels | None:
    """A weight reads what arrives and makes new channels."""
    book.tie(incoming, reading, "it reads a tensor of fixed width")
    book.set_role(reading, "in")
    book.set_role(making, "out")
    return making


def product(book: Book, call: Call) -> None:
    """A product of matrices (mm), or of a batch of them (bmm)."""
    book.set_axes(call.out, _product(book, call, call.inputs[0], call.inputs[1]))


def product_and_sum(book: Book, call: Call) -> None:
    """A product and what is added to it (addmm, baddbmm)."""
    bias, x, y = call.inputs
    axes = _product(book, call, x, y)
    for own, labels, size in zip(reversed(call.axes(bias)), reversed(axes), reversed(call.shape(bias)), strict=False):
        if size > 1:
            book.tie(own, labels)
    book.set_axes(call.out, axes)


def _product(book: Book, call: Call, x: Tensor, y: Tensor) -> Axes:
    """(…, m, k) times (…, k, n): the contracted axes are one axis; a weight learns what its axes do."""
    a, b = call.axes(x), call.axes(y)
    for left, right in zip(a[:-2], b[:-2], strict=True):
        if left is not None or right is not None:
            book.tie(left, right)
    macs = float(call.out.numel() * call.shape(x)[-1])
    if book.weight(y) is not None:
        _weight(book, a[-1], b[-2], b[-1])
        book.use(y, Use("linear", macs))
    elif book.weight(x) is not None:  # weight times data: seldom, but legal
        _weight(book, b[-2], a[-1], a[-2])
        book.use(x, Use("linear", macs))
    else:
        book.tie(a[-1], b[-2], "it is multiplied by a matrix of fixed size")
    return [*a[:-1], b[-1]]


def embedding(book: Book, call: Call) -> None:
    """Rows are looked up by number; what comes out is the width of the table."""
    rows, width = call.axes(call.given("weight"))
    book.freeze(rows, "it is looked up by number")
    book.set_role(width, "out")
    book.set_axes(call.out, [*[None] * (call.out.dim() - 1), width])
