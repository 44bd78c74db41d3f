"""Feeding a network and reading its answer, whatever shapes of containers it takes and returns.

An example is what one forward pass consumes: a tensor (passed as the one argument), a tuple or list
(passed as positional arguments) or a mapping (passed as keyword arguments): a dict, or what a processor of
transformers returns, which is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import UserError

Example = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def call(model: nn.Module, example: Example) -> Any:
    """One forward pass."""
    if isinstance(example, Mapping):
        return model(**example)
    if isinstance(example, tuple | list):
        return model(*example)
    return model(example)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for the whole network, every module's flag restored afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training


def first_call(model: nn.Module, example: Example) -> Any:
    """A forward pass of a network that nobody has tried yet: what it raises becomes a :class:`UserError`."""
    try:
        return call(model, example)
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise UserError(
            f"{type(model).__name__} cannot run on the example input: {type(error).__name__}: "
            f"{lines[0] if lines else ''}; give an input that model(example) accepts"
        ) from error


def batch_size(example: Example) -> int:
    """Samples in an example: the length of the first tensor that has an axis."""
    for tensor in _tensors(example):
        if tensor.ndim:
            return len(tensor)
    raise UserError(f"an example of type {type(example).__name__} holds no tensor with a batch axis")


def repeated(example: Example, samples: int) -> Any:
    """The example with so many samples, its own over and over; what has no batch axis stays."""
    size = batch_size(example)
    chosen = torch.arange(samples) % size
    return _map(example, lambda tensor: tensor[chosen] if tensor.ndim and len(tensor) == size else tensor)


def leading(batches: Iterable[tuple[Any, Any]], share: float) -> Iterator[tuple[Any, Any]]:
    """The first ``share`` of the samples of (input, label) batches, two at least; the last batch is cut short.

    A single sample, which batch norm cannot normalise, is left out behind others.
    """
    if share == 1:
        yield from batches
        return
    batches = list(batches)
    left = max(2, math.ceil(share * sum(batch_size(inputs) for inputs, _ in batches)))
    for number, (inputs, labels) in enumerate(batches):
        size = batch_size(inputs)
        if number and left == 1 < size:
            return
        yield (inputs, labels) if size <= left else (_head(inputs, size, left), _head(labels, size, left))
        left -= size
        if left <= 0:
            return


def _head(example: Any, size: int, samples: int) -> Any:
    """The first samples of a batch of ``size``; what has no batch axis stays."""
    return _map(example, lambda tensor: tensor[:samples] if tensor.ndim and len(tensor) == size else tensor)


def to(example: Any, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
    """The example with its tensors moved; ``dtype`` applies to floating-point tensors only."""
    return _map(example, lambda tensor: tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None))


def _map(example: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The example with every tensor changed."""
    if isinstance(example, Tensor):
        return change(example)
    if isinstance(example, Mapping):
        return {key: _map(value, change) for key, value in example.items()}
    if isinstance(example, tuple) and hasattr(example, "_fields"):  # a named tuple takes its items one by one
        return type(example)(*(_map(value, change) for value in example))
    if isinstance(example, tuple | list):
        return type(example)(_map(value, change) for value in example)
    return example


def outputs(result: Any) -> list[Tensor]:
    """All tensors of a nested result, in order.

    Looks into tuples, lists, mappings and dataclasses (so into the result classes of torchvision and
    transformers); anything else, such as None or a number, is passed over.
    """
    return list(_tensors(result))


def logits(result: Any) -> Tensor:
    """The first tensor of a result: class scores, by the convention of every classification library."""
    for tensor in _tensors(result):
        return tensor
    raise UserError(f"the model returned {type(result).__name__} without any tensor in it")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):  # before dataclasses: a transformers result is both
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
