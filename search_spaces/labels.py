"""Follow channels through a forward pass: every parameter axis carries labels, operators identify them.

Each entry of each axis of each parameter gets a label of its own. While the network runs once, every
operator says which labels must be the same channel: a sum ties its terms position by position, a
convolution ties the input axis of its weight to what arrives, batch norm ties its scale to its input.
What an operator cannot keep apart (layer norm over the axis, a reshape into attention heads) is frozen
with the reason. Labels that end up in one connected component are one removable unit.

This needs no gradient, no list of layer types and no knowledge of the model's code; unknown operators
freeze what they touch, so an unknown network loses prunable layers, never correctness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoprune.space import Role

Labels = NDArray[np.int64]
Axes = list[Labels | None]


@dataclass
class ParameterAxis:
    """One axis of one parameter or buffer, and the role it was seen to play."""

    path: str
    axis: int
    labels: Labels
    role: Role = "through"
    order: int = -1  # when the forward pass first used the tensor


@dataclass
class Use:
    """How a weight was applied: the facts a cost needs."""

    path: str
    kind: str
    applications: float = 0.0  # multiplications of each entry, whole batch
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    input_size: tuple[int, int] = (1, 1)


@dataclass
class Ledger:
    """What one forward pass taught: axes, ties (as edge lists), frozen labels with reasons, uses."""

    axes: dict[str, list[ParameterAxis]] = field(default_factory=dict)
    count: int = 0
    edges: list[tuple[Labels, Labels]] = field(default_factory=list)
    frozen: list[tuple[Labels, str]] = field(default_factory=list)
    uses: dict[str, Use] = field(default_factory=dict)

    def new(self, size: int) -> Labels:
        """Fresh labels."""
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def tie(self, a: Labels | None, b: Labels | None, reason: str = "it meets a tensor of fixed width") -> None:
        """Declare two axes the same, position by position; an untracked partner fixes the other."""
        if a is None or b is None:
            self.freeze(a, reason)
            self.freeze(b, reason)
        else:
            self.edges.append((a, b))

    def freeze(self, labels: Labels | None, reason: str) -> None:
        """Declare that these entries can never be removed."""
        if labels is not None and len(labels):
            self.frozen.append((labels, reason))


REASONS = {
    "native_layer_norm": "layer norm averages over its channels",
    "native_group_norm": "group norm averages over its channels",
    "pixel_shuffle": "pixel shuffle turns its channels into pixels",
}
FACTORIES = {"empty_like", "full_like", "new_empty", "new_full", "new_ones", "new_zeros", "ones_like", "zeros_like"}
IDENTITY = {"_to_copy", "alias", "clone", "contiguous", "detach", "lift_fresh", "native_dropout", "positive"}
POINTWISE = {"hardswish", "hardsigmoid", "hardtanh", "_prelu_kernel", "rrelu_with_noise", "fill"}  # not all are tagged so
REDUCTIONS = {"all", "amax", "amin", "any", "linalg_vector_norm", "logsumexp", "max", "mean", "min", "prod", "std", "sum", "var"}
SPATIAL = ("max_pool", "avg_pool", "_adaptive", "adaptive_", "upsample_", "_upsample_", "reflection_pad", "replication_pad")
BATCH_NORMS = {
    "native_batch_norm",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
}


class Follow(TorchDispatchMode):
    """The dispatch mode that watches one forward pass and fills a :class:`Ledger`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.ledger = Ledger()
        self._axes: dict[int, tuple[Tensor, Axes]] = {}  # the tensor is kept alive, so ids stay unique
        self._weights: dict[int, str] = {}
        self._clock = 0
        tensors = [*model.named_parameters(), *model.named_buffers()]
        for path, tensor in tensors:
            axes = [
                ParameterAxis(path, axis, self.ledger.new(size)) for axis, size in enumerate(tensor.shape)
            ]
            self.ledger.axes[path] = axes
            self._axes[id(tensor)] = (tensor, [axis.labels for axis in axes])
            self._weights[id(tensor)] = path

    # -- what is known of a tensor ------------------------------------------------------------

    def axes(self, tensor: Tensor) -> Axes:
        """Labels per axis; None where the axis is not made of anybody's channels."""
        known = self._axes.get(id(tensor))
        return list(known[1]) if known is not None else [None] * tensor.dim()

    def _set(self, tensor: Tensor, axes: Sequence[Labels | None]) -> None:
        checked = [
            labels if labels is not None and len(labels) == size else None
            for labels, size in zip(axes, tensor.shape, strict=True)
        ]
        self._axes[id(tensor)] = (tensor, checked)

    def freeze_all(self, tensor: Tensor, reason: str) -> None:
        """Freeze every tracked axis of a tensor."""
        for labels in self.axes(tensor):
            self.ledger.freeze(labels, reason)

    # -- the forward pass ---------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._clock += 1
        for tensor in inputs:
            path = self._weights.get(id(tensor))
            if path is not None and self.ledger.axes[path] and self.ledger.axes[path][0].order < 0:
                for axis in self.ledger.axes[path]:
                    axis.order = self._clock
        before = {id(tensor): self.axes(tensor) for tensor in inputs}
        shapes = {id(tensor): tuple(tensor.shape) for tensor in inputs}
        result = func(*args, **kwargs)
        call = Call(func, name, args, kwargs, result, inputs, before, shapes)
        rule = _rule(call)
        rule(self, call)
        return result

    def weight(self, tensor: Tensor) -> str | None:
        """The parameter that a tensor is (a view of), if any."""
        return self._weights.get(id(tensor))

    def mark_weight(self, view: Tensor, path: str | None) -> None:
        """Remember that ``view`` is a transposed or re-typed parameter."""
        if path is not None:
            self._weights[id(view)] = path

    def role(self, path: str, labels: Labels | None, role: Role) -> None:
        """Record what the axis of parameter ``path`` that carries ``labels`` does."""
        for axis in self.ledger.axes[path]:
            if labels is not None and len(labels) == len(axis.labels) and labels[0] == axis.labels[0]:
                axis.role = role

    def use(self, path: str, kind: str, applications: float, **facts: Any) -> None:
        """Count the multiplications of a weight."""
        use = self.ledger.uses.setdefault(path, Use(path, kind, **facts))
        use.applications += applications


@dataclass
class Call:
    """One operator call with what was known of its inputs."""

    func: Any
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    inputs: list[Tensor]
    _before: dict[int, Axes]
    _shapes: dict[int, tuple[int, ...]]

    def __post_init__(self) -> None:
        names = [argument.name for argument in self.func._schema.arguments]
        self.given: dict[str, Any] = {a.name: a.default_value for a in self.func._schema.arguments if a.has_default_value()}
        self.given.update(zip(names, self.args, strict=False))
        self.given.update(self.kwargs)

    def axes(self, tensor: Tensor) -> Axes:
        """Labels of an input as they were before the call."""
        return list(self._before[id(tensor)])

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """Shape of an input as it was before the call."""
        return self._shapes[id(tensor)]

    @property
    def outputs(self) -> list[Tensor]:
        """All tensors that came out."""
        return [leaf for leaf in tree_leaves(self.result) if isinstance(leaf, Tensor)]

    def dims(self, key: str = "dim") -> list[int]:
        """The dimension argument as non-negative integers; all dimensions when it is absent."""
        rank = len(self.shape(self.inputs[0]))
        given = self.given.get(key)
        if given is None or given == []:
            return list(range(rank))
        return [d % rank for d in ([given] if isinstance(given, int) else given)] if rank else []


Rule = Callable[[Follow, Call], None]


def _rule(call: Call) -> Rule:
    """The rule for an operator; in-place variants follow their plain form."""
    name = call.name.rstrip("_") if not call.name.startswith("__") else call.name
    if name in RULES:
        return RULES[name]
    if name in FACTORIES:
        return _nothing
    if name in IDENTITY:
        return _identity
    if name in BATCH_NORMS:
        return _batch_norm
    if name in REDUCTIONS:
        return _reduce
    if name.startswith(SPATIAL):
        return _spatial
    if name in POINTWISE or torch.Tag.pointwise in call.func.tags:
        return _pointwise
    return _unknown


def _unknown(follow: Follow, call: Call) -> None:
    reason = REASONS.get(call.name, f"operator {call.name} may mix its channels or fix their number")
    for tensor in call.inputs:
        for labels in call.axes(tensor):
            follow.ledger.freeze(labels, reason)


def _nothing(follow: Follow, call: Call) -> None:
    """Only the shape of the input matters; what comes out is nobody's channels."""


def _identity(follow: Follow, call: Call) -> None:
    source, out = call.inputs[0], call.outputs[0]
    follow._set(out, call.axes(source))
    follow.mark_weight(out, follow.weight(source))


def _pointwise(follow: Follow, call: Call) -> None:
    """Broadcast: axes that meet are the same axis."""
    out = call.outputs[0]
    axes: Axes = [None] * out.dim()
    for axis, size in enumerate(out.shape):
        present: list[Labels | None] = []
        for tensor in call.inputs:
            shape = call.shape(tensor)
            own = axis - (out.dim() - len(shape))
            if own >= 0 and shape[own] == size:
                present.append(call.axes(tensor)[own])
        tracked = [labels for labels in present if labels is not None]
        if not tracked:
            continue
        for labels in present:
            if labels is not tracked[0] and (labels is not None or size > 1):
                follow.ledger.tie(tracked[0], labels)
        axes[axis] = tracked[0]
    for tensor in call.outputs:
        if tuple(tensor.shape) == tuple(out.shape):
            follow._set(tensor, axes)
    if len(call.inputs) == 1 and call.name in {"clone"}:
        follow.mark_weight(out, follow.weight(call.inputs[0]))


def _convolution(follow: Follow, call: Call) -> None:
    x, w, bias = call.given["input"], call.given["weight"], call.given.get("bias")
    groups, transposed = int(call.given["groups"]), bool(call.given["transposed"])
    book, path = follow.ledger, follow.weight(w)
    x_axes, w_axes = call.axes(x), call.axes(w)
    for labels in (*x_axes[2:], *w_axes[2:]):
        if path is None or labels is None or not any(labels is axis for axis in w_axes[2:]):
            book.freeze(labels, "a convolution slides over it")
    incoming, out_axis = x_axes[1], 1 if transposed else 0
    outgoing = w_axes[out_axis]
    if path is None:
        for labels in (incoming, *w_axes):
            book.freeze(labels, "a convolution whose weight is computed uses it")
    elif groups == 1:
        book.tie(incoming, w_axes[1 - out_axis], "it reads a tensor of fixed width")
        follow.role(path, w_axes[1 - out_axis], "in")
        follow.role(path, outgoing, "out")
    elif groups == call.shape(w)[0] == call.shape(x)[1] and not transposed:
        book.tie(incoming, outgoing, "it reads a tensor of fixed width")  # depthwise: one filter a channel
    elif not transposed:
        _grouped(follow, path, incoming, w_axes, groups)
    else:
        for labels in (incoming, *w_axes):
            book.freeze(labels, "a grouped transposed convolution uses it")
        outgoing = None
    out = call.outputs[0]
    if isinstance(bias, Tensor):
        book.tie(call.axes(bias)[0], outgoing)
    follow._set(out, [x_axes[0], outgoing, *[None] * (out.dim() - 2)])
    if path is not None:
        spatial = call.shape(x)[2:] if transposed else out.shape[2:]
        size = (*call.shape(x)[2:], 1)[:2]
        follow.use(
            path,
            "conv",
            float(out.shape[0] * math.prod(spatial)),
            kernel=int(call.shape(w)[-1]),
            stride=int(call.given["stride"][0]),
            groups=groups,
            input_size=(int(size[0]), int(size[1])),
        )


def _grouped(follow: Follow, path: str, incoming: Labels | None, w_axes: Axes, groups: int) -> None:
    """Grouped convolution: every convolution group must lose the same number, so units span all groups."""
    book = follow.ledger
    outgoing, narrow = w_axes[0], w_axes[1]
    assert outgoing is not None and narrow is not None
    if len(narrow) == 1 and incoming is not None:  # one input per group: filter banks follow their input
        book.tie(np.repeat(incoming, len(outgoing) // groups), outgoing)
        return
    if incoming is None:
        book.freeze(narrow, "it reads a tensor of fixed width")
    else:
        book.tie(incoming, np.tile(narrow, groups))
    columns = outgoing.reshape(groups, -1)
    for row in columns[1:]:
        book.tie(columns[0], row)
    follow.role(path, narrow, "in")
    follow.role(path, outgoing, "out")


def _batch_norm(follow: Follow, call: Call) -> None:
    x = call.inputs[0]
    axes = call.axes(x)
    for tensor in call.inputs[1:]:
        follow.ledger.tie(axes[1], call.axes(tensor)[0])
    follow._set(call.outputs[0], axes)


def _multiply(follow: Follow, x: Tensor, y: Tensor, call: Call, out: Tensor) -> Axes:
    """(…, k) x (…, k, n): the contracted axes are one axis; weights learn their roles."""
    a, b = call.axes(x), call.axes(y)
    follow.ledger.tie(a[-1], b[-2], "it is multiplied by a matrix of fixed size")
    for labels in zip(a[:-2], b[:-2], strict=False):
        if labels[0] is not None or labels[1] is not None:
            follow.ledger.tie(*labels)
    path, left = follow.weight(y), follow.weight(x)
    if path is not None:
        follow.role(path, b[-2], "in")
        follow.role(path, b[-1], "out")
        follow.use(path, "linear", out.numel() / call.shape(y)[-1])
    elif left is not None:  # weight @ x, seldom but legal
        follow.role(left, a[-1], "in")
        follow.role(left, a[-2], "out")
        follow.use(left, "linear", out.numel() / call.shape(x)[-2])
    return [*a[:-1], b[-1]]


def _mm(follow: Follow, call: Call) -> None:
    x, y = call.inputs[-2], call.inputs[-1]
    follow._set(call.outputs[0], _multiply(follow, x, y, call, call.outputs[0]))


def _addmm(follow: Follow, call: Call) -> None:
    bias, x, y = call.given["self"], call.given["mat1"], call.given["mat2"]
    out = call.outputs[0]
    axes = _multiply(follow, x, y, call, out)
    follow.ledger.tie(call.axes(bias)[-1], axes[-1])
    follow._set(out, axes)


def _linear(follow: Follow, call: Call) -> None:
    x, w, bias = call.given["input"], call.given["weight"], call.given.get("bias")
    a, b, out = call.axes(x), call.axes(w), call.outputs[0]
    follow.ledger.tie(a[-1], b[1], "it reads a tensor of fixed width")
    path = follow.weight(w)
    if path is not None:
        follow.role(path, b[1], "in")
        follow.role(path, b[0], "out")
        follow.use(path, "linear", out.numel() / call.shape(w)[0])
    if isinstance(bias, Tensor):
        follow.ledger.tie(call.axes(bias)[0], b[0])
    follow._set(out, [*a[:-1], b[0]])


def _embedding(follow: Follow, call: Call) -> None:
    weight = call.given["weight"]
    axes = call.axes(weight)
    follow.ledger.freeze(axes[0], "it is looked up by number")
    path = follow.weight(weight)
    if path is not None:
        follow.role(path, axes[1], "out")
    out = call.outputs[0]
    follow._set(out, [*[None] * (out.dim() - 1), axes[1]])


def _spatial(follow: Follow, call: Call) -> None:
    """Pooling, resizing, reflecting: only the axes after the channels change."""
    x, out = call.inputs[0], call.outputs[0]
    axes = call.axes(x)
    for labels in axes[2:]:
        follow.ledger.freeze(labels, f"{call.name} slides over it")
    follow._set(out, [*axes[:2], *[None] * (out.dim() - 2)])


def _pad(follow: Follow, call: Call) -> None:
    x, out = call.inputs[0], call.outputs[0]
    axes = call.axes(x)
    for axis, (labels, old, new) in enumerate(zip(axes, call.shape(x), out.shape, strict=True)):
        if old != new:
            follow.ledger.freeze(labels, "it is padded with constant channels")
            axes[axis] = None
    follow._set(out, axes)


def _reduce(follow: Follow, call: Call) -> None:
    x = call.inputs[0]
    axes, gone = call.axes(x), set(call.dims())
    for axis in gone:
        follow.ledger.freeze(axes[axis], f"{call.name} is taken over its channels")
    keepdim = bool(call.given.get("keepdim", False))
    left = [None if axis in gone else labels for axis, labels in enumerate(axes) if keepdim or axis not in gone]
    for out in call.outputs:
        if out.dim() == len(left):
            follow._set(out, left)


def _softmax(follow: Follow, call: Call) -> None:
    axes = call.axes(call.inputs[0])
    for axis in call.dims():
        follow.ledger.freeze(axes[axis], "softmax is taken over it")
    follow._set(call.outputs[0], axes)


def _permute(follow: Follow, call: Call) -> None:
    x, out = call.inputs[0], call.outputs[0]
    axes, rank = call.axes(x), len(call.shape(x))
    if call.name.startswith("permute"):
        order = call.dims("dims")
    else:
        order = list(range(rank))
        i, j = (call.given["dim0"], call.given["dim1"]) if "dim0" in call.given else (0, rank - 1)
        order[i % rank], order[j % rank] = order[j % rank], order[i % rank]
    follow._set(out, [axes[axis] for axis in order])
    follow.mark_weight(out, follow.weight(x))


def _reshape(follow: Follow, call: Call) -> None:
    x, out = call.inputs[0], call.outputs[0]
    old, new = call.shape(x), tuple(out.shape)
    if old == new:
        return _identity(follow, call)
    axes, result = call.axes(x), [None] * len(new)
    for before, after in _segments(old, new):
        tracked = [axis for axis in before if axes[axis] is not None and old[axis] > 1]
        if not tracked:
            continue
        target = _follow_segment(axes, tracked, [old[a] for a in before], [new[a] for a in after], before[0])
        if target is None:
            for axis in tracked:
                follow.ledger.freeze(axes[axis], f"it is reshaped from {list(old)} to {list(new)}")
        else:
            result[after[target[0]]] = target[1]  # type: ignore[call-overload]
    follow._set(out, result)
    return None


def _segments(old: Sequence[int], new: Sequence[int]) -> Iterable[tuple[list[int], list[int]]]:
    """Runs of old and new axes with equal products, from the left."""
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


def _follow_segment(
    axes: Axes, tracked: list[int], old: list[int], new: list[int], first: int
) -> tuple[int, Labels] | None:
    """Where the one tracked axis of a segment went: (new axis in the segment, labels), else None."""
    if len(tracked) > 1:
        return None
    labels = axes[tracked[0]]
    assert labels is not None
    shape = [1] * len(old)
    shape[tracked[0] - first] = -1
    grid = np.broadcast_to(labels.reshape(shape), old).reshape(new)
    varying = [axis for axis in range(len(new)) if not (grid == grid.take([0], axis)).all()]
    if len(varying) != 1:
        return None
    others: list[Any] = [0] * len(new)
    others[varying[0]] = slice(None)
    return varying[0], np.ascontiguousarray(grid[tuple(others)])


def _expand(follow: Follow, call: Call) -> None:
    x, out = call.inputs[0], call.outputs[0]
    axes, shape = call.axes(x), call.shape(x)
    lead = out.dim() - len(shape)
    follow._set(out, [None] * lead + [a if n == out.shape[lead + i] else None for i, (a, n) in enumerate(zip(axes, shape, strict=True))])


def _squeeze(follow: Follow, call: Call) -> None:
    x = call.inputs[0]
    shape = call.shape(x)
    dims = set(call.dims())
    follow._set(call.outputs[0], [a for i, a in enumerate(call.axes(x)) if not (i in dims and shape[i] == 1)])


def _unsqueeze(follow: Follow, call: Call) -> None:
    x, out = call.inputs[0], call.outputs[0]
    axes = call.axes(x)
    axes.insert(int(call.given["dim"]) % out.dim(), None)
    follow._set(out, axes)


def _select(follow: Follow, call: Call) -> None:
    x = call.inputs[0]
    axes, axis = call.axes(x), call.dims()[0]
    follow.ledger.freeze(axes.pop(axis), "one of its channels is picked by number")
    follow._set(call.outputs[0], axes)


def _slice(follow: Follow, call: Call) -> None:
    """A part of an axis. Its labels are followed; the proof finds code that counts on their number."""
    x, out = call.inputs[0], call.outputs[0]
    axes, axis = call.axes(x), call.dims()[0]
    labels = axes[axis]
    if labels is not None:
        size = call.shape(x)[axis]
        start, stop, step = slice(call.given.get("start"), call.given.get("end"), call.given.get("step")).indices(size)
        axes[axis] = labels[start:stop:step]
    follow._set(out, axes)


def _split(follow: Follow, call: Call) -> None:
    x = call.inputs[0]
    axis, start = call.dims()[0], 0
    for out in call.outputs:
        axes = call.axes(x)
        labels = axes[axis]
        axes[axis] = None if labels is None else labels[start : start + out.shape[axis]]
        start += out.shape[axis]
        follow._set(out, axes)


def _cat(follow: Follow, call: Call) -> None:
    out, tensors = call.outputs[0], call.inputs
    axis = int(call.given.get("dim", 0)) % out.dim()
    axes: Axes = []
    for a in range(out.dim()):
        parts = [call.axes(tensor)[a] for tensor in tensors]
        if all(part is None for part in parts):
            axes.append(None)
        elif a == axis:
            axes.append(np.concatenate([_known(follow, p, call.shape(t)[a]) for p, t in zip(parts, tensors, strict=True)]))
        else:
            first = next(part for part in parts if part is not None)
            for part in parts:
                if part is not first:
                    follow.ledger.tie(first, part)
            axes.append(first)
    follow._set(out, axes)


def _known(follow: Follow, labels: Labels | None, size: int) -> Labels:
    """Labels for a part of a concatenation; a part that is nobody's channels gets frozen ones."""
    if labels is None:
        labels = follow.ledger.new(size)
        follow.ledger.freeze(labels, "it is not made by any layer")
    return labels


def _roll(follow: Follow, call: Call) -> None:
    axes = call.axes(call.inputs[0])
    for axis in call.dims("dims"):
        follow.ledger.freeze(axes[axis], f"{call.name} moves its channels by a fixed number")
    follow._set(call.outputs[0], axes)


RULES: dict[str, Rule] = {
    "convolution": _convolution,
    "mm": _mm,
    "bmm": _mm,
    "addmm": _addmm,
    "linear": _linear,
    "embedding": _embedding,
    "constant_pad_nd": _pad,
    "_softmax": _softmax,
    "_log_softmax": _softmax,
    "t": _permute,
    "transpose": _permute,
    "permute": _permute,
    "view": _reshape,
    "_unsafe_view": _reshape,
    "_reshape_alias": _reshape,
    "reshape": _reshape,
    "expand": _expand,
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "select": _select,
    "slice": _slice,
    "split": _split,
    "split_with_sizes": _split,
    "cat": _cat,
    "roll": _roll,
    "flip": _roll,
}
