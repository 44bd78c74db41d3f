"""Operators that mix along an axis, and those of which nothing is known."""

from __future__ import annotations

from ..labels import Book
from .call import Call, Rule


def unknown(book: Book, call: Call) -> None:
    """Nothing is known of what it does: all that goes in stays whole."""
    _freeze_inputs(book, call, f"operator {call.name} may mix its channels or fix their number")


def unforeseen(book: Book, call: Call) -> None:
    """The operator is known, but not in this form."""
    _freeze_inputs(book, call, f"operator {call.name} is used in an unforeseen way")


def because(reason: str) -> Rule:
    """The rule of an operator that keeps all that goes in whole, for a reason that is known."""
    return lambda book, call: _freeze_inputs(book, call, reason)


def _freeze_inputs(book: Book, call: Call, reason: str) -> None:
    for tensor in call.inputs:
        for labels in call.axes(tensor):
            book.freeze(labels, reason)


def along(book: Book, call: Call) -> None:
    """Softmax, cumulative sums, rolling: the named axes stay whole, the others pass."""
    axes = call.axes(call.x)
    for axis in call.dims("dims" if call.name in {"roll", "flip"} else "dim"):
        book.freeze(axes[axis], f"{call.name.strip('_')} works along it")
    for out in call.outputs:
        book.set_axes(out, axes)


def reduce(book: Book, call: Call) -> None:
    """Mean, maximum, norm: the named axes stay whole and go, the others pass."""
    axes, gone = call.axes(call.x), set(call.dims())
    for axis in gone:
        book.freeze(axes[axis], f"{call.name.removeprefix('linalg_')} is taken over its channels")
    left = [None if axis in gone else labels for axis, labels in enumerate(axes)]
    if not call.given("keepdim"):
        left = [labels for axis, labels in enumerate(left) if axis not in gone]
    for out in call.outputs:
        if out.dim() == len(left):
            book.set_axes(out, left)


def layer_norm(book: Book, call: Call) -> None:
    """The last axes are averaged over; the others pass."""
    axes, over = call.axes(call.x), len(call.given("normalized_shape"))
    for labels in (axis for tensor in call.inputs for axis in call.axes(tensor)[-over:]):
        book.freeze(labels, f"{'RMS' if 'rms' in call.name else 'layer'} norm averages over its channels")
    book.set_axes(call.out, axes)


def group_norm(book: Book, call: Call) -> None:
    """Groups of channels are averaged over, together with the pixels."""
    _freeze_inputs(book, call, "group norm averages over its channels")
    book.set_axes(call.out, call.axes(call.x))


def weight_norm(book: Book, call: Call) -> None:
    """Each output channel of a weight is divided by its norm over everything else."""
    v, g, dim = call.given("v"), call.given("g"), int(call.given("dim"))
    axes = call.axes(v)
    for axis, labels in enumerate(axes):
        if axis != dim:
            book.freeze(labels, "weight norm averages over its channels")
    book.tie(axes[dim], call.axes(g)[dim])
    book.set_axes(call.out, axes)
