"""One operator call, and what a rule is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..labels import Axes, Book


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
