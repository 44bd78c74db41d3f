"""What each operator does to channel labels: one short rule per kind of operator.

A rule ``(book, call)`` looks at the axes of the inputs, declares ties and frozen labels, and says what
the axes of the outputs are made of. Outputs it says nothing about are nobody's channels; whatever meets
them later is frozen. :data:`RULES` lists the rules by operator name, :func:`rule_for` also knows the
families that a name pattern or torch's own tag identifies.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .labels import Axes, Book, Labels, Use


class Call:
    """One operator call and what was known of its inputs before it ran.

    ``known`` holds the axes and the shape of every input: an operator that works in place changes both.
    """

    def __init__(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: list[Tensor],
        known: list[tuple[Axes, tuple[int, ...]]],
        outputs: list[Tensor],
    ) -> None:
        self.func = func
        self.name: str = func.overloadpacket.__name__
        self.inputs = inputs
        self.outputs = outputs
        self._args, self._kwargs = args, kwargs
        self._known = {id(tensor): facts for tensor, facts in zip(inputs, known, strict=True)}

    @property
    def x(self) -> Tensor:
        """The first tensor that goes in."""
        return self.inputs[0]

    @property
    def out(self) -> Tensor:
        """The first tensor that comes out."""
        return self.outputs[0]

    def axes(self, tensor: Tensor) -> Axes:
        """What was known of each axis of an input."""
        return list(self._known[id(tensor)][0])

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The shape that an input had."""
        return self._known[id(tensor)][1]

    def given(self, name: str) -> Any:
        """An argument by its name in the operator's schema, its default where it was not given."""
        for position, argument in enumerate(self.func._schema.arguments):
            if argument.name == name:
                if name in self._kwargs:
                    return self._kwargs[name]
                return self._args[position] if position < len(self._args) else argument.default_value
        return None

    def dims(self, name: str = "dim") -> list[int]:
        """The axes an argument names, counted from the front; all of them when it names none."""
        rank, given = len(self.shape(self.x)), self.given(name)
        if given is None or given == [] or rank == 0:
            return list(range(rank))
        return [d % rank for d in ([given] if isinstance(given, int) else given)]


Rule = Callable[[Book, Call], None]

ALONE = "all its channels hang together"


# -- operators that leave channels alone ------------------------------------------------------


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


# -- operators that mix along an axis ---------------------------------------------------------


def unknown(book: Book, call: Call) -> None:
    """Nothing is known of what it does: all that goes in stays whole."""
    _freeze_inputs(book, call, f"operator {call.name} may mix its channels or fix their number")


def unforeseen(book: Book, call: Call) -> None:
    """The operator is known, but not in this form."""
    _freeze_inputs(book, call, f"operator {call.name} is used in an unforeseen way")


def _because(reason: str) -> Rule:
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


# -- layers -----------------------------------------------------------------------------------


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


# -- operators that move axes -----------------------------------------------------------------


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


# -- operators that take apart and put together -----------------------------------------------


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


# -- which rule -------------------------------------------------------------------------------

RULES: dict[str, Rule] = {
    **dict.fromkeys(("new_full", "new_ones", "new_zeros"), nothing),
    "new_empty": buffer,
    **dict.fromkeys(("empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"), same),
    **dict.fromkeys(("_to_copy", "alias", "clone", "contiguous", "detach", "lift_fresh", "positive"), same),
    **dict.fromkeys(("bernoulli", "fill", "native_dropout", "normal", "uniform", "zero"), same),
    **dict.fromkeys(("_prelu_kernel", "copy", "hardswish", "hardtanh", "log_sigmoid_forward"), pointwise),
    **dict.fromkeys(("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm"), batch_norm),
    **dict.fromkeys(("_native_batch_norm_legit", "_native_batch_norm_legit_no_training"), batch_norm),
    **dict.fromkeys(("_batch_norm_with_update", "_batch_norm_no_update"), batch_norm),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumprod", "cumsum", "flip", "roll", "sort"), along),
    **dict.fromkeys(("all", "amax", "amin", "any", "argmax", "argmin", "linalg_vector_norm", "logsumexp"), reduce),
    **dict.fromkeys(
        ("max", "mean", "median", "min", "norm", "prod", "std", "std_mean", "sum", "var", "var_mean"), reduce
    ),
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "_fused_rms_norm": layer_norm,
    "_weight_norm_interface": weight_norm,
    "convolution": convolution,
    "mm": product,
    "bmm": product,
    "addmm": product_and_sum,
    "baddbmm": product_and_sum,
    "embedding": embedding,
    "t": permute,
    "transpose": permute,
    "permute": permute,
    "squeeze": squeeze,
    "unsqueeze": unsqueeze,
    "expand": expand,
    "repeat": repeat,
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias"), reshape),
    "select": select,
    "unbind": unbind,
    "slice": part,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"), split),
    "glu": glu,
    "cat": cat,
    "stack": stack,
    "constant_pad_nd": pad,
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    "channel_shuffle": channel_shuffle,
    "im2col": _because("its patches are unfolded into columns"),
    "unfold": _because("windows are taken along it"),
}

PRODUCTS = {"convolution", "mm", "bmm", "addmm", "baddbmm", "_trilinear"}
"""Operators whose result is no longer a weight, even if weights are all that goes in."""

SPATIAL = re.compile(r"(?:pool|upsample|pad)\w*?([123])d")
FAMILIES: Sequence[tuple[str, Rule]] = (
    ("attention", _because("attention needs its heads whole")),
    ("rnn|lstm|gru", _because("a recurrent layer keeps its state whole")),
    ("fft", _because("a Fourier transform mixes it")),
)


def rule_for(call: Call) -> Rule:
    """The rule for an operator; the in-place form follows the plain one."""
    name = call.name if call.name.startswith("__") else call.name.rstrip("_")
    if name in RULES:
        return RULES[name]
    if torch.Tag.pointwise in call.func.tags:
        return pointwise
    if SPATIAL.search(name):
        return spatial
    return next((rule for pattern, rule in FAMILIES if re.search(pattern, name)), unknown)
