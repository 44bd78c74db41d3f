"""Residual sums: which layer's output completes which sum, found from one forward pass.

A residual network adds a branch to a shortcut. Whoever repairs the last layer of the branch wants the *sum* to be
right, so it has to know what that layer's output is added to. Operators are told apart by their number in the forward
pass, which is the same for a network and its pruned copies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from autoprune.forward import Example, call, evaluating, outputs
from autoprune.rectifiers import Clip, Readers, clip

ADDITIONS = ("aten.add.Tensor", "aten.add_.Tensor")


class Operator(NamedTuple):
    """One operator call of a forward pass: its number, its name, and its tensors."""

    number: int
    name: str
    inputs: list[Tensor]
    outputs: list[Tensor]
    written: list[Tensor]  # those of the inputs that it changes
    arguments: Mapping[str, Any]  # all of them, by the names of its schema


class Operators(TorchDispatchMode):
    """Numbers the operators of a forward pass and shows each to ``look``, after it ran.

    What runs while it is ``silent`` is neither numbered nor shown.
    """

    def __init__(self, look: Callable[[Operator], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.number = 0
        self._look = look

    @contextmanager
    def silent(self) -> Iterator[None]:
        """For the code of hooks: the mode is left meanwhile, because each operator under it costs time."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            self.__enter__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        schema = func._schema.arguments
        arguments = {
            argument.name: kwargs.get(argument.name, args[place] if place < len(args) else argument.default_value)
            for place, argument in enumerate(schema)
        }
        written = [
            arguments[argument.name]
            for argument in schema
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        inputs = _tensors((args, kwargs))
        self._look(Operator(self.number, str(func), inputs, _tensors(result), _tensors(written), arguments))
        self.number += 1
        return result


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


@dataclass(frozen=True)
class Sum:
    """What a layer's output is added to, and the operator that adds.

    The shortcut is output ``place`` of operator number ``shortcut``, called ``operator``; the sum is the output of
    operator number ``total``.
    """

    shortcut: int
    place: int
    operator: str
    total: int


@dataclass(frozen=True, eq=False)
class Course:
    """One forward pass, by the key of each watched layer.

    ``runs`` is how often it ran, ``lengths`` how long the first axis of its input was, ``sums`` what it completes,
    ``clips`` what rectifiers do to its output if they alone read it; ``pairs`` names the layer before a layer that
    alone reads what one rectifier makes of it. ``largest`` is the most bytes that the tensors of one operator take
    together.
    """

    runs: Mapping[str, int]
    lengths: Mapping[str, int]
    sums: Mapping[str, Sum]
    clips: Mapping[str, Clip]
    pairs: Mapping[str, str]
    largest: int


class _Search:
    """What is known of the tensors of a pass while it runs."""

    def __init__(self) -> None:
        self.operators = Operators(self.look)
        self.alive: list[Tensor] = []  # so that ids and addresses stay unique
        self.makers: dict[int, tuple[int, int, str]] = {}  # tensor: the last operator that returned it
        self.changed: dict[int, int] = {}  # memory: the last operator that wrote to it
        self.started: dict[str, int] = {}
        self.runs: Counter[str] = Counter()
        self.lengths: dict[str, int] = {}
        self.ends: dict[int, tuple[str, int]] = {}  # tensor: the layer whose output it is, the operator after it
        self.found: dict[str, Sum] = {}
        self.readers = Readers()
        self.read: dict[str, int] = {}  # the memory that a layer reads
        self.running: str | None = None  # the layer whose operators these are
        self.largest = 0

    def start(self, path: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.started[path] = self.operators.number
        self.running = path
        if inputs and isinstance(inputs[0], Tensor):
            self.read[path] = _address(inputs[0])
        self.runs[path] += 1
        self.lengths[path] = len(inputs[0]) if inputs and inputs[0].dim() else 0

    def leave(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self.running = None

    def end(self, path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            self.alive.append(output)
            self.ends[id(output)] = path, self.operators.number
            self.readers.made(path, _address(output))

    def look(self, operator: Operator) -> None:
        tensors = [*operator.inputs, *operator.outputs]
        self.largest = max(self.largest, sum(tensor.numel() * tensor.element_size() for tensor in tensors))
        if operator.name in ADDITIONS and operator.arguments["alpha"] == 1 and len(operator.inputs) == 2:
            a, b = operator.inputs
            if a is not b and a.shape == b.shape:
                terms = [*self._completes(a, b), *self._completes(b, a)]
                if terms:
                    _, path, maker = max(terms)
                    self.found.setdefault(path, Sum(*maker, operator.number))
        by, made = clip(operator.name, operator.arguments), _address(operator.outputs[0]) if operator.outputs else 0
        for address in {_address(tensor) for tensor in operator.inputs}:
            self.readers.read(address, by, made, self.running)
        for tensor in operator.written:
            self.changed[_address(tensor)] = operator.number
        for place, tensor in enumerate(operator.outputs):
            self.alive.append(tensor)
            self.makers[id(tensor)] = operator.number, place, operator.name

    def _completes(self, own: Tensor, other: Tensor) -> Iterator[tuple[int, str, tuple[int, int, str]]]:
        """The layer whose untouched output ``own`` is, if ``other`` was made before that layer began."""
        if id(own) in self.ends and id(other) in self.makers:
            path, ended = self.ends[id(own)]
            maker = self.makers[id(other)]
            untouched = (
                self.changed.get(_address(own), -1) < ended and self.changed.get(_address(other), -1) <= maker[0]
            )
            if untouched and maker[0] < self.started[path]:
                yield self.started[path], path, maker

    def pairs(self, answers: set[int]) -> Mapping[str, str]:
        """The first layer by the second, where what the first reads is not changed afterwards."""
        pairs = self.readers.pairs(answers)
        return {
            second: first
            for second, first in pairs.items()
            if first in self.read and self.changed.get(self.read[first], -1) < self.started[first]
        }


def _address(tensor: Tensor) -> int:
    """Where its memory lies, the same for all views of it."""
    return tensor.untyped_storage().data_ptr()


def follow(model: nn.Module, layers: Mapping[str, tuple[nn.Module, nn.Module]], example: Example) -> Course:
    """One pass that finds the sums which a layer completes, and the rectifiers that read layers.

    All else in such a sum is known before the layer runs; of two layers in one sum the one that runs last completes it.
    ``layers`` gives, by any key, a layer and the module whose output counts as the layer's (itself, or the batch norm
    behind it).
    """
    search = _Search()
    with torch.no_grad(), evaluating(model), ExitStack() as hooks:
        for path, (layer, last) in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(partial(search.start, path)))
            hooks.enter_context(layer.register_forward_hook(search.leave))
            hooks.enter_context(last.register_forward_hook(partial(search.end, path)))
        hooks.enter_context(search.operators)
        answers = {_address(tensor) for tensor in outputs(call(model, example))}
    clips = search.readers.clipped(answers)
    return Course(search.runs, search.lengths, search.found, clips, search.pairs(answers), search.largest)
