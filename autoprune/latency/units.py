"""The pieces of a network that are timed alone: an operation with the batch norm and activation that follow it.

Two pieces with the same signature take the same time, whichever network they are in. A signature names the operator and
all its sizes, with a letter for every length that depends on the scheme:

    conv2d(input=1xAx56x56, weight=BxAx3x3, stride=1x1, padding=1x1, dilation=1x1, groups=1) + batch_norm + relu_
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import ascii_uppercase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from autoprune.operations import Operand, Operation, Operations, Size, Volumes
from autoprune.scheme import Scheme
from autoprune.space import SearchSpace

_PLAIN = (
    "relu",
    "relu6",
    "hardtanh",
    "leaky_relu",
    "elu",
    "silu",
    "hardswish",
    "hardsigmoid",
    "sigmoid",
    "tanh",
    "mish",
)
FOLLOWS = frozenset(["batch_norm", "gelu", "prelu", "dropout", "dropout_", *_PLAIN, *(f"{name}_" for name in _PLAIN)])
"""Operators that take the shape of what they read and may be done in one go with what made it."""
LETTERS = 2  # lengths that a table has an axis for; beyond, pieces are told apart by how many entries they read
RATES = 256  # how finely a network is narrowed to read a given number of entries
NUMBERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class Unit:
    """One piece: its operations, its signature, and the lengths that depend on the scheme.

    ``letters`` are the places (in :attr:`Operations.rest`) where the lengths called A, B, … stand; ``ratios`` tells for
    every place that varies which letter it is, and how many times. With ``entries`` there is one letter, and it
    stands for the number of entries read.
    """

    operations: tuple[Operation, ...]
    signature: str
    letters: tuple[int, ...]
    ratios: Mapping[int, tuple[int, float]]
    entries: bool = False

    @cached_property
    def _read(self) -> list[list[int]]:
        return [list(operand.place) for operand in self.operations[0].read]

    def lengths(self, sizes: NDArray[np.float64]) -> tuple[int, ...]:
        """What the letters stand for at the sizes of a scheme."""
        if self.entries:
            return (round(sum(float(sizes[place].prod()) for place in self._read)),)
        return tuple(round(float(sizes[place])) for place in self.letters)

    def sizes(self, operations: Operations, lengths: Sequence[int], space: SearchSpace) -> NDArray[np.float64]:
        """Sizes at which the letters stand for ``lengths``.

        Where they stand for entries, the sizes are those of a scheme that reads about so many, all groups cut alike:
        only a scheme's lengths are sure to fit together.
        """
        if self.entries:
            return operations.sizes(self._scheme(operations, lengths[0], space).kept)
        sizes = operations.rest.copy()
        for place, (letter, ratio) in self.ratios.items():
            sizes[place] = round(lengths[letter] * ratio)
        return sizes

    def _scheme(self, operations: Operations, entries: int, space: SearchSpace) -> Scheme:
        volumes = Volumes(operations, self._read)

        def enough(scheme: Scheme) -> bool:
            return bool(volumes(np.array(scheme.kept, dtype=np.float64)).sum() > entries - 0.5)

        def cut(number: int) -> Scheme:
            return space.floor(np.full(len(space), number / RATES))

        number = bisect_left(range(RATES), True, key=lambda number: enough(cut(number)))
        if number == RATES:
            return space.dense
        scheme = cut(max(0, number - 1))
        for g, count in enumerate(cut(number).kept):  # one group after the other, to come close
            if enough(scheme):
                break
            scheme = scheme.replace(g, count)
        return scheme


def units(operations: Operations) -> list[Unit]:
    """The pieces of a forward pass in their order; views and what reads no real numbers are left out."""
    readers = Counter(operand.value for o in operations.calls for operand in o.read)
    chains: list[list[Operation]] = []
    open_value = None
    for operation in operations.calls:
        read = [operand for operand in operation.read if not operand.parameter]
        if (
            open_value is not None
            and operation.name in FOLLOWS
            and [operand.value for operand in read] == [open_value]
            and readers[open_value] == 1
        ):
            chains[-1].append(operation)
        elif operation.view or not operation.made or not _numbers(operation):
            open_value = None
            continue
        else:
            chains.append([operation])
        open_value = operation.made[0].value if len(operation.made) == 1 else None
    return [_unit(tuple(chain), operations) for chain in chains]


def _numbers(operation: Operation) -> bool:
    return bool(operation.read) and all(operand.dtype in NUMBERS for operand in operation.read)


def _unit(chain: tuple[Operation, ...], operations: Operations) -> Unit:
    places = [place for operation in chain for leaf in operation.arguments for place in _places(leaf)]
    letters: list[int] = []
    ratios: dict[int, tuple[int, float]] = {}
    for place in places:
        row = np.append(operations.slope[place], operations.rest[place])
        if not row[:-1].any():
            continue
        for letter, known in enumerate(letters):
            other = np.append(operations.slope[known], operations.rest[known])
            ratio = row[np.abs(other).argmax()] / other[np.abs(other).argmax()]
            if np.allclose(row, ratio * other, atol=1e-9):
                ratios[place] = letter, float(ratio)
                break
        else:
            ratios[place] = len(letters), 1.0
            letters.append(place)
    entries = len(letters) > LETTERS
    text = _signature(chain, operations, ratios, entries)
    return Unit(chain, text, tuple(letters[:1] if entries else letters), ratios, entries)


def _places(leaf: Any) -> Sequence[int]:
    if isinstance(leaf, Operand):
        return leaf.place
    return [leaf.place] if isinstance(leaf, Size) else []


def _signature(
    chain: tuple[Operation, ...], operations: Operations, ratios: Mapping[int, tuple[int, float]], entries: bool
) -> str:
    def length(place: int) -> str:
        if place not in ratios:
            return f"{operations.rest[place]:g}"
        letter, ratio = ratios[place]
        return "*" if entries else (f"{ratio:g}" if ratio != 1 else "") + ascii_uppercase[letter]

    def value(leaf: Any) -> str:
        if isinstance(leaf, Operand):
            return "x".join(length(place) for place in leaf.place)
        if isinstance(leaf, Size):
            return length(leaf.place)
        if isinstance(leaf, list | tuple):
            return "x".join(value(item) for item in leaf)
        return str(leaf)

    head = chain[0]
    positional, named = tree_unflatten(head.arguments, head.spec)
    names = [argument.name for argument in head.function._schema.arguments]  # no public name
    told = dict(zip(names, positional, strict=False)) | named
    words = [f"{name}={value(leaf)}" for name, leaf in told.items() if not _silent(leaf)]
    return " + ".join([f"{head.name}({', '.join(words)})", *(operation.name for operation in chain[1:])])


def _silent(leaf: Any) -> bool:
    """What a signature does not tell: arguments left out, and the device, which is that of the whole table."""
    return leaf is None or leaf == [] or isinstance(leaf, torch.device)


class Replay(nn.Module):
    """A piece alone, with random weights of given sizes."""

    def __init__(self, unit: Unit, sizes: NDArray[np.float64]) -> None:
        super().__init__()
        self._operations = unit.operations
        self._calls: list[list[Any]] = []
        inputs: list[Tensor] = []
        made: int | None = None
        for operation in unit.operations:
            leaves: list[Any] = []
            for leaf in operation.arguments:
                if isinstance(leaf, Size):
                    leaves.append(round(sizes[leaf.place]))
                elif isinstance(leaf, torch.device):
                    leaves.append(_Link(device=True))
                elif not isinstance(leaf, Operand):
                    leaves.append(leaf)
                elif leaf.value == made:
                    leaves.append(_Link())
                elif leaf.parameter:
                    name = f"weight{len(self._buffers)}"
                    self.register_buffer(name, torch.rand(_shape(leaf, sizes)) + 0.5)
                    leaves.append(_Link(name))
                else:
                    inputs.append(torch.randn(_shape(leaf, sizes)))
                    leaves.append(_Link(input=len(inputs) - 1))
            self._calls.append(leaves)
            made = operation.made[0].value
        self.example = tuple(inputs)

    def forward(self, *inputs: Tensor) -> Any:
        """The operations one after the other."""
        result: Any = None
        for operation, leaves in zip(self._operations, self._calls, strict=True):
            values = [leaf.follow(self, inputs, result) if isinstance(leaf, _Link) else leaf for leaf in leaves]
            args, kwargs = tree_unflatten(values, operation.spec)
            result = operation.function(*args, **kwargs)
        return result


@dataclass(frozen=True)
class _Link:
    """Where an argument comes from: a weight by name, an input by number, or the operation before; or the device."""

    weight: str | None = None
    input: int | None = None
    device: bool = False

    def follow(self, module: nn.Module, inputs: Sequence[Tensor], result: Any) -> Any:
        if self.device:
            return next(iter((*inputs, *module.buffers()))).device
        if self.weight is not None:
            return module.get_buffer(self.weight)
        return result if self.input is None else inputs[self.input]


def _shape(operand: Operand, sizes: NDArray[np.float64]) -> list[int]:
    return [round(sizes[place]) for place in operand.place]


def spans(
    found: Sequence[Unit], operations: Operations, space: SearchSpace
) -> dict[str, tuple[tuple[int, int, int], ...]]:
    """Per signature and letter: the least and the greatest length in this space, and the step between lengths."""
    low, high = operations.sizes(space.smallest.kept), operations.sizes(space.dense.kept)
    spans: dict[str, tuple[tuple[int, int, int], ...]] = {}
    for unit in found:
        steps = _steps(unit, operations, space)
        own = tuple(zip(unit.lengths(low), unit.lengths(high), steps, strict=True))
        before = spans.get(unit.signature, own)
        spans[unit.signature] = tuple(
            (min(*a[:2], *b[:2]), max(*a[:2], *b[:2]), min(a[2], b[2])) for a, b in zip(before, own, strict=True)
        )
    return spans


def _steps(unit: Unit, operations: Operations, space: SearchSpace) -> list[int]:
    if unit.entries:
        return [1]
    steps = []
    for place in unit.letters:
        by_group = np.abs(operations.slope[place] * [group.unit for group in space.groups])
        steps.append(max(1, round(float(by_group[by_group > 0].min()))))
    return steps
